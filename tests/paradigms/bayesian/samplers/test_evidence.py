"""What weighted paths say of a target, and when they say nothing."""

import pytest
import torch

import mfoc
from paradigms.bayesian import follmer
from tests.paradigms.bayesian.targets import Constant, at_start, gaussian, wild
from tests.problems import D


def test_resampling_is_systematic():
    made = follmer(gaussian(), wild(), steps=3)
    evidence = made.evaluate(at_start(made), n=40)
    share = evidence.log_weights.softmax(0)
    drawn = evidence.resampled(1000)
    counts = torch.tensor([int((drawn == row).all(1).sum()) for row in evidence.x])
    assert bool(((counts - 1000 * share).abs() < 1 + 1e-9).all())
    assert made.readout(at_start(made))["x"].shape == (256, 2)


def test_weights_that_are_not_finite_are_an_error():
    made = follmer(gaussian(), Constant(torch.full((2,), 1e200, dtype=D)), steps=2)
    with pytest.raises(mfoc.InvalidValue, match="weights are not finite"):
        made.evaluate(at_start(made), n=10)
    with pytest.raises(mfoc.InvalidValue, match=r"n is 1; .* from 2 on"):
        made.evaluate(at_start(made), n=1)

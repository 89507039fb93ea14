"""Dropout whose mask comes from the data."""

import pytest
import torch
from torch import nn

import mfoc
from mfoc.networks import MaskedDropout
from tests.oracles.training import output
from tests.problems import D, distance, normal


def test_masked_dropout():
    net = nn.Sequential(nn.Linear(3, 4), MaskedDropout(0.25, "mask"), nn.Linear(4, 2)).double()
    mask = (torch.arange(20).view(5, 4) % 4 > 0).to(D)
    x, z = normal(5, 3), {"mask": mask}
    problem = mfoc.from_module(net, lambda x, z: x.square().sum(1))
    assert torch.equal(output(problem, x, z), net[2](net[0](x) * mask / 0.75))
    problem.validate(mfoc.Particles(x, z))
    assert (
        distance(
            mfoc.evaluate(problem, problem.controls, mfoc.Particles(x, z)).gradient,
            mfoc.evaluate(problem, problem.controls, mfoc.Particles(x, z), recompute=True).gradient,
        )
        < 1e-13
    )
    with pytest.raises(mfoc.InvalidValue, match="mask"):
        problem.validate(mfoc.Particles(x))
    still = mfoc.from_module(net.eval(), lambda x, z: x.square().sum(1))
    assert torch.equal(output(still, x), net[2](net[0](x)))

"""Networks cut where several values are alive: the same function, and the same gradient, as plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F

import mfoc
from tests.networks.cuts.networks import NETWORKS, answer, made
from tests.oracles.training import gradient, output
from tests.problems import same_bits


def agrees(net, x, stages):
    """Output and J's gradient in all controls are plain torch's; the network is left alone."""
    before = copy.deepcopy(net.state_dict())
    expected = answer(copy.deepcopy(net), x)
    z = torch.zeros_like(expected)
    problem = mfoc.from_module(net, F.mse_loss, stages=stages)
    particles = mfoc.Particles(x, z)
    assert problem.stages == len(stages)
    torch.testing.assert_close(output(problem, x), expected, rtol=1e-12, atol=1e-13)
    problem.validate(particles)

    own = copy.deepcopy(net)
    F.mse_loss(answer(own, x), z).backward()
    slopes = {key: p.grad for key, p in own.named_parameters()}
    for found in (
        gradient(problem, problem.controls, particles),
        mfoc.evaluate(problem, problem.controls, particles).gradient,
        mfoc.evaluate(problem, problem.controls, particles, recompute=True).gradient,
    ):
        names = [key for u in found for key in u]
        assert sorted(names) == sorted(slopes)
        for u in found:
            for key, value in u.items():
                torch.testing.assert_close(value, slopes[key], rtol=1e-10, atol=1e-13, msg=key)
    assert same_bits(before, net.state_dict())
    assert same_bits(before, mfoc.to_module(net, problem.controls, stages=stages).state_dict())
    return problem


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_gradient_are_the_networks(name):
    agrees(*made(name))

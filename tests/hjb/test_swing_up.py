"""A pendulum too weak to be lifted at once: a value function on a grid beside DDP, which sees one path at a time."""

from dataclasses import replace

import pytest
import torch

import mfoc
from tests.problems import D
from tests.robots import in_torch


@pytest.mark.slow
def test_the_feedback_costs_what_ddp_finds_or_less():
    problem, cloud = in_torch("pendulum", 6, bounded=True)
    axes = [torch.linspace(-0.75, 2.75, 141, dtype=D) * torch.pi, torch.linspace(-8, 8, 121, dtype=D)]
    value = mfoc.hjb.solve(problem, axes)
    found = value.closed_loop(cloud.state)
    assert float(torch.stack(found.controls).abs().max()) == 4.0

    def by_ddp(controls):
        started = replace(problem, controls=controls)
        return mfoc.rollout(started, mfoc.solve(started, mfoc.DDP(), cloud, steps=100, tol=1e-8), cloud).cost

    cold, polished = by_ddp(problem.controls), by_ddp(found.controls)
    assert float((polished - found.cost).max()) < 1e-9
    assert float((found.cost / polished - 1).max()) < 0.01  # the grid finds the path, DDP its last digits
    assert float((value(0, cloud.state) / polished - 1).abs().max()) < 0.04  # V has a kink where two ways up cost alike
    assert float((cold / polished).min()) > 1 - 1e-8
    assert float((cold / polished).max()) > 1.03  # from the hanging pendulum DDP goes the dearer way for some

"""Where a step waits for the device: each wait empties a GPU's queue, so each is known here, and no more are allowed.

Counted are the waits of a second step, all lines of the library that ask for a number of the device.
"""

from __future__ import annotations

import pytest
import torch

import mfoc
from tests.devices import paper
from tests.devices.public import classified, moved
from tests.devices.waits import ADAM, SGD, SOLVERS, solve, step
from tests.problems import mlp

pytestmark = pytest.mark.skipif(not paper.AVAILABLE, reason="a device on paper needs torch 2.10 and later")

CASES = [(name, made) for name, counted in SOLVERS.items() for made in counted.problems]


@pytest.mark.parametrize(("name", "made"), CASES, ids=[f"{name}-{made.__name__}" for name, made in CASES])
def test_a_step_waits_no_more_than_is_known(name, made):
    counted = SOLVERS[name]
    stages, log = step(counted.solver, made)
    assert len(log.waits) <= counted.most(stages), log.waits
    assert len(log.copies) <= counted.copies, log.copies


def test_doors_wait_only_to_see_whether_the_controls_are_finite():
    with paper.on_paper() as log:
        problem, particles = moved(mlp(), paper.to_paper)
        trajectory = mfoc.rollout(problem, problem, particles)
        costates = mfoc.costates(problem, problem, trajectory, particles)
        mfoc.hamiltonian(problem, 0, trajectory.states[0], costates[1], problem.controls[0], particles.data)
        mfoc.evaluate(problem, problem, particles)
        assert all(wait.startswith("mfoc/validation.py") for wait in log.waits), log.waits
        assert len(log.waits) <= 4


@pytest.mark.parametrize("make", [mfoc.optim.CSGD, mfoc.optim.CMSGD])
def test_the_controlled_optimisers_look_once_a_step_whether_the_gradient_is_finite(make):
    with paper.on_paper() as log:
        net, loss, (x, y) = classified(
            lambda tree: tree.to("paper") if isinstance(tree, torch.nn.Module) else paper.to_paper(tree)
        )
        optimizer = make(net.parameters(), lr=0.1)
        loss(net(x), y).backward()
        optimizer.step()
        log.clear()
        optimizer.step()
        assert len(log.waits) == 1


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_solve_waits_at_each_of_its_first_steps_and_then_once_in_thirty_two(optimizer):
    early, later, late = (len(solve(steps, optimizer)) for steps in (11, 43, 107))
    assert early <= 55  # validation compares arguments before and after each call, 27 times, before the first step
    assert later - early <= 2
    assert late - later <= 3

"""Where a step waits for the device: each wait empties a GPU's queue, so each is known here, and no more are allowed.

Counted are the waits of a second step, all lines of the library that ask for a number of the device.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch

import mfoc
from tests.devices import paper
from tests.devices.public import classified, moved
from tests.problems import interacting, mlp, tied

pytestmark = pytest.mark.skipif(not paper.AVAILABLE, reason="a device on paper needs torch 2.10 and later")

# At most so many of a step, for a problem of T stages: those of a solver that decides by a number of the device.
MOST = {
    "SGD": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.1, momentum=0.9)), lambda T: 0),
    "Adam": (mfoc.Gradient(partial(torch.optim.Adam, lr=0.01)), lambda T: 0),
    "recompute": (mfoc.Gradient(partial(torch.optim.Adam, lr=0.01), recompute=True), lambda T: 0),
    # the inner minimum of each stage says whether it fell without end
    "MSA": (mfoc.MSA(mfoc.minimisers.Descent(0.05, steps=3)), lambda T: T),
    # J before and after a try, the gaps that weigh it, and the inner minimiser's own
    "EMSA": (mfoc.EMSA(1.0, adaptive=True, inner=mfoc.minimisers.LBFGS(3)), lambda T: 6 + 10 * T),
    # J, its slope's norm, and the radius; three of each product of the truncated conjugate gradients
    "NewtonCG": (mfoc.NewtonCG(products=4), lambda T: 15 + 5 * 4),
}


def waits(solver, made):
    """Of the second step."""
    with paper.on_paper() as log:
        problem, particles = moved(made(), paper.to_paper)
        state = solver.init(problem, problem.controls)
        controls, state, _ = solver.step(problem, problem.controls, state, particles)
        log.clear()
        solver.step(problem, controls, state, particles)
        assert not log.copies, "numbers of the host are sent at each step"
        return problem.stages if made is not tied else 1, Counter(log.waits)


@pytest.mark.parametrize("made", [mlp, interacting, tied])
@pytest.mark.parametrize("name", MOST)
def test_a_step_waits_no_more_than_is_known(name, made):
    solver, most = MOST[name]
    stages, found = waits(solver, made)
    assert found.total() <= most(stages), found


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


def per_step(steps):
    """Waits of a whole solve of so many steps."""
    with paper.on_paper() as log:
        problem, particles = moved(mlp(), paper.to_paper)
        mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), particles, steps=steps)
        return len(log.waits)


def test_solve_waits_a_few_times_a_step_and_no_more_late_than_early():
    early, late = (per_step(22) - per_step(20)) / 2, (per_step(42) - per_step(40)) / 2
    assert early == late <= 5

"""The Hamiltonian of frozen states and costates, plain and augmented, as functions of flattened controls."""

from dataclasses import replace

import pytest
import torch

import mfoc
from mfoc.blocks import Penalty
from mfoc.frozen import Sweep
from mfoc.minimisers import LBFGS
from tests.oracles.training import augmented_hamiltonian
from tests.problems import CATALOGUE, distance, leaves, normal


@pytest.mark.parametrize("penalty", [None, (0.7, 0.3), (2.0, 0.0)], ids=str)
@pytest.mark.parametrize("name", CATALOGUE)
def test_augmented_hamiltonian_equals_the_formula(name, penalty):
    problem, particles = CATALOGUE[name]()
    sweep = Sweep.at(problem, problem.controls, particles)
    states, costates = sweep.states, sweep.costates
    weights = penalty or (0.0, 0.0)
    seen = []
    for block in sweep.blocks(None if penalty is None else Penalty(*penalty)):
        rows = block.start + 0.1 * normal(*block.start.shape, seed=7)
        value, slope = block.evaluate(rows)
        terms = []
        free = rows.detach().requires_grad_()
        for g, t in enumerate(block.stages):
            whole = block.restore(free[0 if len(rows) == 1 else g])
            u = whole if problem.schedule is mfoc.per_stage else problem.schedule(whole, t)
            terms.append(augmented_hamiltonian(problem, t, u, states, costates, particles.data, *weights).mean())
            seen.append(t)
        expected = torch.stack(terms) if len(rows) == len(terms) else torch.stack(terms).sum()[None]
        torch.testing.assert_close(value, expected.detach(), rtol=1e-11, atol=1e-11)
        expected_slope = torch.autograd.grad(expected.sum(), free)[0]
        torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-11)
    with_controls = [t for t in range(problem.stages) if leaves(problem.schedule(problem.controls, t))]
    assert sorted(seen) == with_controls


@pytest.mark.parametrize("penalty", [None, Penalty(0.7, 0.3)], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", ["linear_quadratic", "decayed", "mlp"])
def test_stacked_blocks_equal_unstacked(name, penalty):
    problem, particles = CATALOGUE[name]()
    found = {}
    for stacked in (True, False):
        same = problem if stacked else replace(problem, kind=None)  # no two stages are known alike
        parts = Sweep.at(same, problem.controls, particles).blocks(penalty)
        found[stacked] = {}
        for block in parts:
            rows = block.start + 0.1
            value, slope = block.evaluate(rows)
            point = LBFGS(steps=5).minimise(block.evaluate, block.start).point if penalty else rows
            for g, t in enumerate(block.stages):
                found[stacked][t] = (value[g], slope[g], point[g])
        assert len(parts) < len(found[stacked]) or not stacked or name == "mlp"
    assert found[True].keys() == found[False].keys()
    for t, together in found[True].items():
        for a, b in zip(together, found[False][t], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_slope_that_is_written_down_has_the_bits_of_autograd(name):
    problem, particles = CATALOGUE[name]()
    for block in Sweep.at(problem, problem.controls, particles).blocks():
        rows = block.start + 0.1 * normal(*block.start.shape, seed=7)
        for a, b in zip(block.evaluate(rows), replace(block, outcome=None).evaluate(rows), strict=True):
            assert torch.equal(a, b)


def test_no_penalty_at_the_present_controls():
    """At the controls of the sweep the trajectory is feasible: the augmentation and its slope vanish."""
    problem, particles = CATALOGUE["decayed"]()
    sweep = Sweep.at(problem, problem.controls, particles)
    plain, augmented = (sweep.blocks(penalty) for penalty in (None, Penalty(50.0, 50.0)))
    for a, b in zip(plain, augmented, strict=True):
        assert distance(list(a.evaluate(a.start)), list(b.evaluate(b.start))) < 1e-11


class Confused:
    """A minimiser with an error of its own in blocks of several rows."""

    def minimise(self, evaluate, start):
        if len(start) > 1:
            raise RuntimeError("a fault of the minimiser")
        return LBFGS(2).minimise(evaluate, start)


def test_an_error_of_the_minimiser_is_not_taken_for_one_of_the_stack():
    problem, particles = CATALOGUE["linear_quadratic"]()
    with pytest.raises(RuntimeError, match="a fault of the minimiser"):
        mfoc.solve(problem, mfoc.MSA(Confused()), particles, steps=1)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, KeyError])
def test_whatever_a_stack_raises_its_stages_are_taken_one_by_one(error):
    problem, particles = CATALOGUE["linear_quadratic"]()

    def picky(t, x, u, z):
        if torch._C._functorch.is_batchedtensor(x):
            raise error("no stacks, please")
        return problem.dynamics(t, x, u, z)

    solver = mfoc.MSA(LBFGS(3))
    alone = mfoc.solve(replace(problem, dynamics=picky), solver, particles, steps=2)
    assert distance(alone.controls, mfoc.solve(problem, solver, particles, steps=2).controls) < 1e-10


def test_an_error_on_a_single_stage_is_the_users():
    problem, particles = CATALOGUE["linear_quadratic"]()
    sound = mfoc.rollout(problem, problem, particles)

    def broken(t, x, u, z):
        if u["k"].requires_grad or torch._C._functorch.is_batchedtensor(x):
            raise KeyError("mine")
        return problem.dynamics(t, x, u, z)

    sweep = Sweep(problem, problem.controls, None, sound.states, sound.states, sound.cost, sound.cost.mean(), None)
    with pytest.raises(KeyError, match="mine"):
        replace(sweep, problem=replace(problem, dynamics=broken)).minimised(LBFGS(2))

"""What the README's "Which solver when" says, each claim a test; ``bench_agreement.py`` prints the whole table."""

from functools import cache
from itertools import pairwise

import pytest
import torch

import mfoc
from tests.agreement import DDP, EMSA, ENTRIES, MSA, NEWTON, cart, double_well
from tests.problems import D

AGREE = [
    ("LQ", solver, 1e-10) for solver in ("L-BFGS", "NewtonCG", "DDP", "EMSA", "SGD", "MSA")
] + [
    ("swarm", solver, 1e-10) for solver in ("L-BFGS", "NewtonCG", "DDP", "EMSA", "SGD", "MSA")
] + [
    ("double well", solver, 1e-10) for solver in ("L-BFGS", "NewtonCG")
] + [
    ("unicycle (free)", "DDP", 1e-9), ("LQ gains", "NewtonCG", 1e-10),
]  # fmt: skip
SLOW = [("double well", "DDP", 1e-10), ("unicycle (free)", "NewtonCG", 1e-9)]


@cache
def row(name, solver):
    """The line of a solver, once."""
    return ENTRIES[name].row(solver)


@pytest.mark.parametrize(
    ("name", "solver", "within"), AGREE + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]
)
def test_within_a_class_solvers_agree_with_ipopt_or_riccati(name, solver, within):
    entry = ENTRIES[name]
    assert row(name, solver).value == pytest.approx(entry.answer(entry.make()).value, rel=within)


def test_classes_of_control_have_different_minima():
    shared, feedback = (ENTRIES[name].answer(ENTRIES[name].make()).value for name in ("LQ", "LQ gains"))
    assert feedback < 0.995 * shared


def test_without_noise_the_value_function_is_the_least_cost_of_each_particle():
    noisy, cloud = double_well(3)
    problem = mfoc.continuous(
        lambda t, x, u, z: x - x**3 + u,
        noisy.terminal_cost,
        [torch.zeros(3, 1, dtype=D) for _ in range(noisy.stages)],
        running_cost=lambda t, x, u, z: (u**2 / 2).sum(-1).expand(len(x)),
        T=4.0,
        per_particle=True,
    )
    own = mfoc.solve(problem, DDP, cloud.state, steps=60, tol=1e-9)
    value = mfoc.hjb.solve(problem, [torch.linspace(-2.5, 2.5, 81, dtype=D)])
    assert own.status is mfoc.Status.CONVERGED
    assert float(value(0, cloud.state).mean()) == pytest.approx(own.value, rel=1e-3)


def test_msa_diverges_where_the_control_is_cheap_and_emsa_goes_down():
    problem, cloud = cart(0.1)
    begun = float(mfoc.evaluate(problem, problem, cloud).value)
    wild = mfoc.solve(problem, MSA, cloud, steps=20)
    assert max(record["value"] for record in wild.history) > 1e3 * begun
    tame = mfoc.solve(problem, EMSA, cloud, steps=20)
    values = [record["value"] for record in tame.history]
    assert all(after <= before + 1e-14 * abs(before) for before, after in pairwise(values))  # to rounding
    assert tame.value < 0.9 * begun
    dear, cloud = cart(1.0)
    assert mfoc.solve(dear, MSA, cloud, steps=60, tol=1e-6).status is mfoc.Status.CONVERGED


def test_lbfgs_is_done_where_plain_gradient_steps_are_on_their_way():
    quick, plain = (row("double well", solver) for solver in ("L-BFGS", "SGD"))
    assert quick.residual < 1e-8
    assert plain.residual > 1e-3
    assert plain.calls > 3 * quick.calls


def test_ddp_is_for_small_states_and_newton_for_clouds():
    """One problem of 201 noisy particles: a joint state of 201 numbers is refused; Newton's products do not mind."""
    problem, cloud = double_well(201)
    with pytest.raises(mfoc.InvalidValue, match="NewtonCG"):
        mfoc.solve(problem, DDP, cloud, steps=1)
    solution = mfoc.solve(problem, NEWTON, cloud, steps=60, tol=1e-8)
    assert solution.status is mfoc.Status.CONVERGED


@pytest.mark.slow
def test_ddp_takes_fewer_steps_than_newton_on_paths_of_a_small_state():
    ddp, newton = (row("unicycle (free)", solver) for solver in ("DDP", "NewtonCG"))
    assert 2 * ddp.solution.last.step <= newton.solution.last.step


@pytest.mark.parametrize(("solver", "share"), [("L-BFGS", 0.75), ("NewtonCG", 0.75), ("EMSA", 1.0), ("MSA", 0.75)])
def test_networks_are_for_first_order_methods_on_batches(solver, share):
    """After 20 passes over the digits; the others have had 20 or more."""
    pytest.importorskip("sklearn")
    batches, other = row("digits", "SGD, momentum"), row("digits", solver)
    assert other.calls >= 20 * ENTRIES["digits"].make()[0].stages
    assert batches.value < share * other.value

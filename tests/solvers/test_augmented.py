"""AugmentedLagrangian: closed forms and ipopt, complementarity, bounds, free end times; what is refused."""

import math
from dataclasses import replace
from functools import partial

import casadi
import pytest
import torch

import mfoc
from mfoc import hooks
from mfoc.pontryagin import evaluate
from mfoc.testing import check_solver
from tests.oracles.double_integrator import ipopt
from tests.problems import D, distance, normal, same_bits

NEWTON = mfoc.AugmentedLagrangian(mfoc.NewtonCG(), steps=20)
GOAL = torch.tensor([1.0, 0.0], dtype=D)
REST = torch.zeros(1, 2, dtype=D)
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.05))


def nothing(x, z):
    return x.new_zeros(len(x))


def integrator(stages=8, *, terminal_cost=nothing, goal=GOAL, n=None, **more):
    """The double integrator from its state to a goal in a unit of time, at least energy; exact steps."""
    h = 1 / stages

    def dynamics(t, x, u, z):
        force = u[..., 0]
        return torch.stack([x[:, 0] + h * x[:, 1] + h**2 / 2 * force, x[:, 1] + h * force], 1)

    return mfoc.Problem(
        dynamics,
        terminal_cost,
        [torch.zeros(*([1] if n is None else [n, 1]), dtype=D) for _ in range(stages)],
        running_cost=lambda t, x, u, z: h * u.square().sum(-1).expand(len(x)),
        per_particle=n is not None,
        **{"terminal": mfoc.Equality(lambda x, z: x - goal), **more},
    )


def solved(problem, solver=NEWTON, cloud=REST, steps=30, tol=1e-8, **more):
    solution = mfoc.solve(problem, solver, cloud, steps=steps, tol=tol, **more)
    assert solution.status is mfoc.Status.CONVERGED, solution
    return solution


@pytest.mark.parametrize(("inner", "n"), [(mfoc.NewtonCG(), None), (mfoc.DDP(), 1)], ids=["newton", "ddp"])
def test_rest_to_rest_has_the_energy_and_the_multipliers_of_the_closed_form(inner, n):
    """Forces c (1/2 - t) at the midpoints, J = c = 12 / (1 - 1/n^2); dJ/d(goal) = -l gives the multipliers."""
    stages = 4
    solution = solved(integrator(stages, n=n), mfoc.AugmentedLagrangian(inner), tol=1e-9)
    energy = 12 / (1 - 1 / stages**2)
    middles = (torch.arange(stages, dtype=D) + 0.5) / stages
    assert solution.value == pytest.approx(energy, rel=1e-7)
    assert distance(torch.cat(solution.controls).ravel(), energy * (0.5 - middles)) < 1e-5
    assert distance(solution.last.state["multipliers"][0], torch.tensor([[-2.0, 1.0]], dtype=D) * energy) < 1e-5


def test_a_ceiling_on_the_position():
    """Bryson & Ho (1975), sec. 3.11, example 1: thrown up and caught again under a ceiling of 1/9, J -> 4."""
    n, start = 12, torch.tensor([[0.0, 1.0]], dtype=D)
    ceiling = mfoc.Inequality(lambda t, x, u, z: x[:, 0] - 1 / 9)
    problem = integrator(n, goal=torch.tensor([0.0, -1.0], dtype=D), path=ceiling)
    value, force, _ = ipopt(n, (0, 1), (0, -1), cost=lambda u, T: casadi.sumsqr(u) / n, ceiling=1 / 9)
    solution = solved(problem, cloud=start, tol=1e-9)
    assert solution.value == pytest.approx(value, abs=1e-6)
    assert distance(torch.cat(solution.controls), torch.tensor(force, dtype=D)) < 1e-4
    assert value == pytest.approx(2 * 4, rel=0.02)  # the energy is not halved here


def test_the_mean_alone_is_constrained():
    """E x_T = goal with a control that all share: that of one particle at the mean of the starts."""
    cloud = normal(6, 2, seed=3)
    problem = integrator(terminal=mfoc.Equality(lambda x, z: x - GOAL, in_mean=True))
    solution = solved(problem, cloud=cloud)
    mean = cloud.mean(0)
    alone = solved(integrator(), cloud=mean[None])
    assert distance(solution.controls, alone.controls) < 1e-6
    end = mfoc.rollout(problem, solution.controls, mfoc.Particles(cloud)).states[-1]
    assert distance(end.mean(0), GOAL) < 1e-7
    assert solution.last.state["multipliers"][0].shape == (2,)
    # By hand: u_k = -(l1 (1 - m_k) + l2) / 2 at the midpoints, with l of the 2 x 2 system of what is missing.
    away = (torch.tensor(7.5, dtype=D) - torch.arange(8, dtype=D)) / 8
    rows = torch.stack([away, torch.ones(8, dtype=D)]) / 8
    missing = GOAL - torch.stack([mean[0] + mean[1], mean[1]])
    assert distance(torch.cat(solution.controls), 8 * torch.linalg.pinv(rows) @ missing / 8) < 1e-6


def test_inequalities_are_active_or_their_multipliers_are_zero():
    """Reach x >= 1 (active) with |v| <= 100 (idle): least energy without a condition on v is 3 / (1 - 1/4n^2)."""
    n = 8
    reach = mfoc.Inequality(lambda x, z: 1 - x[:, 0])
    slow = mfoc.Inequality(lambda x, z: torch.stack([x[:, 1] - 100, -x[:, 1] - 100], 1))
    solution = solved(integrator(n, terminal=[reach, slow]))
    value = 3 / (1 - 1 / (4 * n**2))
    assert solution.value == pytest.approx(value, rel=1e-7)
    active, idle = solution.last.state["multipliers"]
    assert float(active) == pytest.approx(2 * value, rel=1e-6)
    assert not bool(idle.any())


def test_an_inequality_that_is_kept_anyway_changes_nothing():
    problem = integrator(
        terminal=mfoc.Inequality(lambda x, z: x[:, 0] - 5), terminal_cost=lambda x, z: (x[:, 0] - 1) ** 2
    )
    free = mfoc.solve(replace(problem, terminal=None), mfoc.NewtonCG(), REST, steps=10, tol=1e-9)
    solution = solved(problem)
    assert distance(solution.controls, free.controls) < 1e-7
    assert not bool(solution.last.state["multipliers"][0].any())


def test_bounds_hold_beside_constraints():
    n = 8
    problem = integrator(n, bounds=mfoc.Box(-4.5, 4.5))
    solution = solved(problem)
    value, force, _ = ipopt(n, (0, 0), (1, 0), cost=lambda u, T: casadi.sumsqr(u) / n, box=4.5)
    assert solution.value == pytest.approx(value, abs=1e-5)
    assert distance(torch.cat(solution.controls), torch.tensor(force, dtype=D)) < 1e-4
    assert max(float(u.abs().max()) for u in solution.controls) == 4.5


def test_the_shortest_time_is_found():
    """From rest to rest over one unit with |u| <= 1: T = 2, full force forth and back; of an even number of stages."""
    n = 8
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.stack([x[:, 1], u.expand(len(x))], 1),
        nothing,
        [torch.zeros(1, dtype=D) for _ in range(n)],
        running_cost=lambda t, x, u, z: x.new_ones(len(x)),
        scheme=mfoc.heun,
        bounds=mfoc.Box(-1.0, 1.0),
        T=mfoc.FreeTime(1.5, least=0.1),
        terminal=mfoc.Equality(lambda x, z: x - GOAL),
    )
    solution = solved(problem, steps=60, tol=1e-6)
    value, _, _ = ipopt(n, (0, 0), (1, 0), cost=lambda u, T: T, box=1.0, free=True)
    assert value == pytest.approx(2.0, abs=1e-6)
    assert float(solution.controls["T"]) == pytest.approx(2.0, abs=1e-5)
    force = torch.cat(solution.controls["controls"])
    assert distance(force, force.sign()) < 1e-3


def test_a_rule_bounds_the_controls_of_a_free_end_time():
    box = mfoc.Box(-1.0, 1.0)
    problem = mfoc.continuous(
        lambda t, x, u, z: u["w"].expand(len(x), 1),
        nothing,
        [{"w": torch.zeros(1, dtype=D), "b": torch.zeros(1, dtype=D)}] * 2,
        bounds=lambda name, leaf: box if name in ("0.w", "1.w") else None,
        T=mfoc.FreeTime(1.5, least=0.1, most=3.0),
    )
    *sets, end = problem.region.sets
    assert sets == [box, None, box, None]
    assert (end.low, end.high) == (0.1, 3.0)


def test_each_particle_meets_its_own():
    cloud = normal(5, 2, seed=4)
    together = solved(integrator(n=5), cloud=cloud)
    for i in range(2):
        alone = solved(integrator(), cloud=cloud[i : i + 1])
        assert distance([u[i] for u in together.controls], alone.controls) < 1e-6
        held, single = (s.last.state["multipliers"][0] for s in (together, alone))
        assert distance(held[i], single[0]) < 1e-5


def test_a_resumed_solve_is_the_same_to_the_bit(tmp_path):
    problem, solver = integrator(bounds=mfoc.Box(-5.0, 5.0)), mfoc.AugmentedLagrangian(ADAM, steps=3)
    through = mfoc.solve(problem, solver, REST, steps=6)
    mfoc.solve(problem, solver, REST, steps=3, hooks=[hooks.Checkpoint(tmp_path / "at", every=3)])
    resumed = mfoc.solve(problem, solver, REST, steps=6, start=hooks.load(tmp_path / "at"))
    assert same_bits([through.controls, through.last.state], [resumed.controls, resumed.last.state])
    assert resumed.residual == through.residual


def test_it_keeps_the_laws_of_solvers():
    check_solver(mfoc.AugmentedLagrangian(ADAM, steps=3), integrator(), REST)


class TestRefusals:
    def test_a_solver_that_knows_no_constraints(self):
        with pytest.raises(mfoc.InvalidValue, match=r"AugmentedLagrangian\(Gradient"):
            mfoc.solve(integrator(), ADAM, REST, steps=1)

    def test_a_problem_without_constraints(self):
        with pytest.raises(mfoc.InvalidValue, match="no constraint"):
            mfoc.solve(integrator(terminal=None), NEWTON, REST, steps=1)

    def test_minibatches(self):
        cloud = mfoc.population(normal(8, 2), batch_size=4)
        with pytest.raises(mfoc.InvalidValue, match="population whole"):
            mfoc.solve(integrator(), mfoc.AugmentedLagrangian(ADAM, steps=2), cloud, steps=4)

    @pytest.mark.parametrize(
        ("function", "error", "says"),
        [
            (lambda x, z: x.sum(), mfoc.InvalidValue, "one row per particle"),
            (lambda x, z: x[:, :, None], mfoc.InvalidValue, "one row per particle"),
            (lambda x, z: 1.0, mfoc.InvalidType, "expected a floating-point tensor"),
            (lambda x, z: x > 0, mfoc.InvalidType, "expected a floating-point tensor"),
        ],
    )
    def test_constraints_of_another_shape(self, function, error, says):
        with pytest.raises(error, match=says):
            mfoc.solve(integrator(terminal=mfoc.Equality(function)), NEWTON, REST, steps=1)

    def test_what_is_no_constraint(self):
        with pytest.raises(mfoc.InvalidType, match="expected mfoc"):
            integrator(terminal=lambda x, z: x)
        with pytest.raises(mfoc.InvalidType, match="AugmentedLagrangian already"):
            mfoc.AugmentedLagrangian(NEWTON)


def test_a_solver_that_falls_short_does_not_blow_up_the_penalty():
    """Ten steps of Adam never reach the tolerance: the penalty stays small, and the constraints are met ever better."""
    solution = mfoc.solve(integrator(4), mfoc.AugmentedLagrangian(ADAM, steps=10), REST, steps=30)
    assert solution.last.state["penalty"] <= 1e3
    assert solution.last.state["violation"] < 0.1


def test_rounding_does_not_blow_up_the_penalty():
    solution = mfoc.solve(integrator(4), NEWTON, REST, steps=40)
    assert solution.residual < 1e-12
    assert solution.last.state["penalty"] <= 1e4


def test_a_free_end_time_is_no_constant():
    """A slope with which t moves is seen by J's gradient, and a function that would hide it is refused."""

    def problem(sine):
        def drift(t, x, u, z):
            return u * sine(t) - x

        controls = [torch.full((2,), 0.3, dtype=D) for _ in range(8)]
        return mfoc.continuous(drift, lambda x, z: x.square().sum(1), controls, T=mfoc.FreeTime(1.3, 0.1, 5.0))

    cloud = mfoc.Particles(normal(5, 2, seed=7))
    own = problem(torch.sin)

    def cost(T):
        moved = {**own.controls, "T": torch.tensor(T, dtype=D)}
        return float(mfoc.rollout(own, moved, cloud).cost.mean())

    slope = float(evaluate(own, own.controls, cloud).gradient["T"])
    assert slope == pytest.approx((cost(1.3 + 1e-6) - cost(1.3 - 1e-6)) / 2e-6, rel=1e-6)
    with pytest.raises(mfoc.InvalidType, match=r"torch\.sin"):
        problem(math.sin).validate(cloud)

"""Games beside what else a problem has: bounds, constraints, policies, controls of each particle, every solver."""

from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from mfoc.meanfield import Picard
from tests.meanfield.test_equilibrium import cost_of_own, dynamics_of_own, players_slope
from tests.problems import D, distance, normal, scalar_game, swarm

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.2))
LBFGS = mfoc.Gradient(
    partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", max_iter=30, tolerance_grad=1e-14, tolerance_change=0)
)
BOX = mfoc.Box(-0.25, 0.3)


def boxed_swarm():
    problem, cloud = swarm()
    return replace(problem, controls=[u.clamp(-0.25, 0.3) for u in problem.controls], bounds=BOX), cloud


def own_controls(**changes):
    """A scalar game in which each of four players has controls of his own."""
    lq, x = scalar_game(), normal(4, 1) + 1
    problem = replace(
        lq.problem(),
        dynamics=dynamics_of_own(lq),
        running_cost=cost_of_own(lq),
        controls=[torch.zeros(4, 1, dtype=D) for _ in range(4)],
        per_particle=True,
        **changes,
    )
    return lq, problem, x


# ---- solvers


@pytest.mark.parametrize(
    "solver",
    [
        mfoc.EMSA(), mfoc.NewtonCG(), LBFGS, mfoc.AugmentedLagrangian(mfoc.EMSA()),
        mfoc.AugmentedLagrangian(mfoc.NewtonCG()),
    ],
    ids=["emsa", "newton", "line-search", "augmented-emsa", "augmented-newton"],
)  # fmt: skip
def test_what_compares_values_of_j_is_refused_before_the_first_step(solver):
    _, problem, x = own_controls(terminal=mfoc.Inequality(lambda x, z: x[:, 0] - 9))
    if not isinstance(solver, mfoc.AugmentedLagrangian):
        problem = replace(problem, terminal=None)
    game = mfoc.Equilibrium(problem)
    with pytest.raises(mfoc.InvalidValue, match=r"compares values of J.*mfoc\.best_response"):
        solver.init(game, game.controls)
    with pytest.raises(mfoc.InvalidValue, match=r"compares values of J.*mfoc\.best_response"):
        mfoc.solve(game, solver, x, steps=1)


def test_a_game_that_diverges_is_told_what_a_game_can_do():
    lq, x = scalar_game(R=0.05), normal(6, 1) + 1
    found = mfoc.solve(mfoc.Equilibrium(lq.problem()), mfoc.MSA(), x, steps=60)
    assert found.status is mfoc.Status.DIVERGED
    assert "damping (mfoc.meanfield.Picard)" in found.message
    assert "EMSA() in place" not in found.message


def test_every_part_of_the_game_is_the_control_problems():
    assert {each.name for each in fields(mfoc.Equilibrium) if each.init} == {"problem"}
    problem, _ = boxed_swarm()
    with pytest.raises(TypeError, match="bounds"):
        mfoc.Equilibrium(problem, bounds=mfoc.Box(-1, 1))
    rebuilt = mfoc.Equilibrium(problem).rebuilt(lambda own: replace(own, bounds=None))
    assert isinstance(rebuilt, mfoc.Equilibrium)
    assert rebuilt.region is None


# ---- bounds


@pytest.mark.parametrize(
    "solver", [SGD, Picard(mfoc.EMSA(), steps=2), mfoc.EMSA(adaptive=False)], ids=["gradient", "picard", "emsa"]
)
def test_within_bounds_an_equilibrium_has_no_projected_frozen_gradient(solver):
    problem, cloud = boxed_swarm()
    found = mfoc.solve(mfoc.Equilibrium(problem), solver, cloud, steps=200, tol=1e-9)
    u = torch.stack(found.controls)
    slope = players_slope(u, cloud.state)
    assert float((u - (u - slope).clamp(-0.25, 0.3)).abs().max()) < 1e-8
    assert float(u.max()) > 0.3 - 1e-8
    assert float(slope.abs().max()) > 0.01  # not without the bounds
    assert found.residual < 1e-8


def test_what_equilibria_cost_is_measured_within_bounds():
    problem, cloud = boxed_swarm()
    both = mfoc.price_of_anarchy(problem, SGD, cloud, steps=200, tol=1e-9)
    assert both.value > 1
    u = both.optimum.controls
    gain = mfoc.exploitability(problem, u, mfoc.EMSA(), cloud, steps=50, tol=1e-9)
    assert gain.value > 1e-4
    assert all(bool(((v >= -0.25) & (v <= 0.3)).all()) for v in gain.response.controls)
    none = mfoc.exploitability(problem, both.equilibrium, mfoc.EMSA(), cloud, steps=50, tol=1e-9)
    assert abs(none.value) < 1e-9


def test_controls_of_each_player_within_bounds():
    _, problem, x = own_controls(bounds=mfoc.Box(-0.2, 0.2))
    sgd = mfoc.Gradient(partial(torch.optim.SGD, lr=0.8))
    found = mfoc.solve(mfoc.Equilibrium(problem), sgd, x, steps=300, tol=1e-11)
    player = mfoc.best_response(problem, found, x)
    best = mfoc.solve(player, mfoc.EMSA(), x, steps=100, tol=1e-10)
    assert distance(torch.stack(best.controls), torch.stack(found.controls)) < 1e-7
    assert bool((torch.stack(found.controls) == -0.2).any())


# ---- constraints


def test_a_players_constraint_takes_the_law_for_given():
    """x_T = half the mean: stationary is where his slope is along that of his constraint, the mean a number."""
    lq, problem, x = own_controls(terminal=mfoc.Equality(lambda x, z: (x - 0.5 * mfoc.mean(x))[:, 0]))
    solver = mfoc.AugmentedLagrangian(mfoc.Gradient(partial(torch.optim.SGD, lr=0.3)), steps=400, penalty=2.0)
    found = mfoc.solve(mfoc.Equilibrium(problem), solver, x, steps=60, tol=1e-9)
    assert found.residual < 1e-8
    u = torch.stack(found.controls)
    free = replace(problem, terminal=None)
    states = mfoc.rollout(free, found.controls, x).states
    means = [each.mean(0) for each in states]
    get = {name: float(getattr(lq, name)) for name in ("A", "B", "Q", "R", "QT", "Abar", "Qbar", "S", "QbarT", "ST")}

    def play(v):
        """A player's costs and last states, the means numbers."""
        y, total = x, torch.zeros(4, 1, dtype=D)
        for t in range(4):
            total = total + get["Q"] * y**2 + get["Qbar"] * (y - get["S"] * means[t]) ** 2 + get["R"] * v[t] ** 2
            y = get["A"] * y + get["Abar"] * means[t] + get["B"] * v[t]
        return total + get["QT"] * y**2 + get["QbarT"] * (y - get["ST"] * means[4]) ** 2, y

    cost, last = (torch.autograd.functional.jacobian(lambda v, k=k: play(v)[k].sum(), u)[..., 0] for k in (0, 1))
    assert distance(play(u)[1], 0.5 * means[4].expand(4, 1)) < 1e-8
    along = (cost * last).sum(0) / last.square().sum(0)
    assert float(along.abs().min()) > 0.01
    assert distance(cost, along * last) < 1e-7


def test_in_a_best_response_the_law_of_constraints_is_held():
    def gap(x, z):
        return (x - mfoc.mean(x)).square().sum(1) - 1

    def speed(t, x, u, z):
        return (x * mfoc.mean(x)).sum(1) + u.sum() - t

    problem, cloud = swarm()
    problem = replace(problem, terminal=mfoc.Inequality(gap), path=[mfoc.Inequality(speed), mfoc.Inequality(speed)])
    player = mfoc.best_response(problem, problem, cloud)
    states = mfoc.rollout(problem, problem, cloud).states
    y = normal(6, 2, seed=8)
    (end,) = player.terminal_constraints
    assert distance(end.function(y, None), (y - states[-1].mean(0)).square().sum(1) - 1) < 1e-15
    for each in player.path_constraints:
        u = problem.controls[2]
        assert distance(each.function(2, y, u, None), (y * states[2].mean(0)).sum(1) + u.sum() - 2) < 1e-15
    assert not mfoc.interacting.coupling(player, cloud)
    assert mfoc.interacting.coupling(replace(problem, running_cost=None), cloud).named


@pytest.mark.parametrize("where", ["terminal", "path"])
def test_constraints_that_no_player_can_meet_by_himself_are_refused(where):
    problem, cloud = swarm()

    def of(function, **more):
        signed = function if where == "terminal" else lambda t, x, u, z: function(x, z)
        return replace(problem, **{where: mfoc.Inequality(signed, **more)})

    with pytest.raises(mfoc.InvalidValue, match=f"a {where} constraint is in mean"):
        mfoc.Equilibrium(of(lambda x, z: x.sum(1), in_mean=True))
    game = mfoc.Equilibrium(of(lambda x, z: (x - x.mean(0)).sum(1)))
    with pytest.raises(mfoc.InvalidValue, match=f"the {where} constraint.*not named"):
        game.validate(cloud)


# ---- policies


def test_a_feedback_may_read_the_law_and_does_not_move_it():
    class Lending(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(0.4, dtype=D))

        def forward(self, x):
            return self.gain * (mfoc.mean(x) - x)

    lq, own, x = own_controls()
    shared = replace(own, per_particle=False, controls=[torch.zeros(1, dtype=D) for _ in range(4)])
    game = mfoc.Equilibrium(mfoc.feedback(shared, Lending()))
    found = mfoc.evaluate(game, game, x).gradient["gain"]
    law = [each.mean(0) for each in mfoc.rollout(game, game, x).states]

    def cost(gain):
        y, total = x, torch.zeros((), dtype=D)
        for t in range(4):
            u = gain * (law[t] - y)
            apart = y - lq.S * law[t]
            total = total + (lq.Q * y**2 + lq.Qbar * apart**2 + lq.R * u**2).mean()
            y = lq.A * y + lq.Abar * law[t] + lq.B * u
        return total + (lq.QT * y**2 + lq.QbarT * (y - lq.ST * law[4]) ** 2).mean()

    assert distance(found, torch.autograd.functional.jacobian(cost, torch.tensor(0.4, dtype=D))) < 1e-14
    solved = mfoc.solve(game, SGD, x, steps=50)
    assert len(mfoc.policy_of(game.problem, solved).networks) == 1
    with pytest.raises(mfoc.InvalidType, match="take the feedback of that one first"):
        mfoc.feedback(mfoc.Equilibrium(shared), Lending())


def test_what_a_policy_asks_of_a_problem_is_asked_of_its_game():
    problem, cloud = swarm()  # u.square().sum() is no cost of rows
    with pytest.raises(mfoc.InvalidValue, match="row by row"):
        mfoc.solve(mfoc.Equilibrium(mfoc.feedback(problem, nn.Linear(2, 2).double())), SGD, cloud, steps=1)


def test_batch_norm_is_a_coupling_that_is_not_named():
    _, own, x = own_controls()
    shared = replace(own, per_particle=False, controls=[torch.zeros(1, dtype=D) for _ in range(4)])
    policy = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    with pytest.raises(mfoc.InvalidValue, match="not named"):
        mfoc.solve(mfoc.Equilibrium(mfoc.feedback(shared, policy)), SGD, x, steps=1)


# ---- dynamic programming


def test_a_best_response_among_all_feedbacks_is_the_closed_form():
    lq, x = scalar_game(), normal(6, 1) + 1
    exact = mfoc.lq.equilibrium(lq, x.mean(0))
    player = mfoc.best_response(lq.problem(), list(exact.controls), x)
    value = mfoc.hjb.solve(player, [torch.linspace(-6, 6, 13, dtype=D)])
    for t in range(4):
        m = exact.states[t]
        assert distance(value.policy(t, x), -(x - m) @ exact.K[t].mT - m @ exact.Kbar[t].mT) < 1e-7
    with pytest.raises(mfoc.InvalidValue, match=r"dynamic programming compares values of J.*mfoc\.best_response"):
        mfoc.hjb.solve(mfoc.Equilibrium(lq.problem()), [torch.linspace(-6, 6, 13, dtype=D)])

"""The game of a control problem: no derivative goes through the law, whatever way the derivative is taken."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import mfoc
from mfoc.frozen import Sweep
from tests.oracles.games import swarm_cost, swarm_law
from tests.problems import (
    CATALOGUE,
    INTERACTING,
    D,
    discrete_lq,
    distance,
    lq_matrices,
    normal,
    same_bits,
    scalar_game,
    swarm,
)
from tests.ranks import on_ranks

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.2))
LBFGS = mfoc.Gradient(
    partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", max_iter=30, tolerance_grad=1e-14, tolerance_change=0)
)


def players_slope(u, x):
    """dJ(v; m_u)/dv at v = u, the law written out as numbers."""
    law = swarm_law(u, x)
    return torch.autograd.functional.jacobian(lambda v: swarm_cost(v, x, *law), u)


# ---- what is differentiated


def test_the_gradient_is_a_players_and_the_value_is_the_populations():
    problem, cloud = swarm()
    u = torch.stack(problem.controls)
    found = mfoc.evaluate(mfoc.Equilibrium(problem), problem.controls, cloud)
    assert distance(torch.stack(found.gradient), players_slope(u, cloud.state)) < 1e-14
    both = mfoc.evaluate(problem, problem.controls, cloud)
    assert same_bits(found.value, both.value)
    assert distance(found.gradient, both.gradient) > 0.1


@pytest.mark.parametrize("recompute", [False, True])
def test_costates_and_hamiltonians_are_a_players_too(recompute):
    problem, cloud = swarm()
    game = mfoc.Equilibrium(problem)
    slope = list(players_slope(torch.stack(problem.controls), cloud.state))
    assert distance(mfoc.evaluate(game, problem.controls, cloud, recompute=recompute).gradient, slope) < 1e-14
    sweep = Sweep.at(game, problem.controls, cloud)
    assert distance(sweep.gradient, slope) < 1e-14
    (block,) = sweep.blocks()  # all stages in one batch, under vmap
    assert distance(block.evaluate(block.start)[1], torch.stack(slope)) < 1e-14
    mfoc.testing.check_problem(game, cloud)


def test_a_game_of_particles_that_are_alone_is_the_control_problem():
    for name in CATALOGUE.keys() - set(INTERACTING):
        problem, cloud = CATALOGUE[name]()
        game = mfoc.Equilibrium(problem)
        game.validate(cloud)
        found, expected = (mfoc.evaluate(each, problem, cloud) for each in (game, problem))
        assert same_bits([found.value, found.gradient], [expected.value, expected.gradient]), name


def test_continuous_time_is_frozen_within_a_step():
    def drift(t, x, u, z):
        return torch.tanh(mfoc.mean(x)) * u - x

    problem = mfoc.continuous(drift, lambda x, z: x.square().sum(1), [normal(2, seed=3)], scheme=mfoc.heun)
    x = normal(5, 2, seed=4)
    m = torch.tanh(x.mean(0))
    after = torch.tanh((x + m * problem.controls[0] - x).mean(0))

    def cost(v):
        slope = m * v - x
        return (x + (slope + after * v - (x + slope)) / 2).square().sum(1).mean()

    expected = torch.autograd.functional.jacobian(cost, problem.controls[0])
    assert distance(mfoc.evaluate(mfoc.Equilibrium(problem), problem, x).gradient[0], expected) < 1e-14


def test_kernel_means_and_covariances_are_frozen_as_others_are():
    x = normal(5, 2).requires_grad_()

    def kernel(a, b):
        return (a - b).square().sum(-1)

    with mfoc.law.frozen():
        means = mfoc.kernel_mean(kernel, x)
        assert not any(f(x).requires_grad for f in (mfoc.mean, mfoc.variance, mfoc.covariance))
    others = x.detach()
    expected = torch.autograd.grad(kernel(x[:, None], others[None]).mean(1).sum(), x)
    assert distance(torch.autograd.grad(means.sum(), x), expected) < 1e-15


# ---- closed forms


@pytest.mark.parametrize("feedback", [False, True])
def test_the_closed_form_is_stationary_in_its_class_of_controls(feedback):
    spec, _, _ = lq_matrices(3)
    spec.pop("sigma")
    lq, x = discrete_lq(spec), normal(9, 3)
    exact = mfoc.lq.equilibrium(lq, x.mean(0), torch.cov(x.mT, correction=0), shared=not feedback)
    gains = [{"K": K, "Kbar": Kbar} for K, Kbar in zip(exact.K, exact.Kbar, strict=True)]
    game = mfoc.Equilibrium(lq.problem(feedback=feedback))
    found = mfoc.evaluate(game, gains if feedback else list(exact.controls), x)
    assert float(mfoc.tree.norm(found.gradient)) < 1e-13
    assert distance(found.value, exact.value) < 1e-13


def test_a_control_for_each_player_is_the_feedback_seen_from_his_start():
    lq, x = scalar_game(), normal(4, 1) + 1
    shared = lq.problem()
    own = replace(shared, dynamics=dynamics_of_own(lq), running_cost=cost_of_own(lq))
    own = replace(own, controls=[torch.zeros(4, 1, dtype=D) for _ in range(4)])
    exact = mfoc.lq.equilibrium(lq, x.mean(0))
    controls, state, m = [], x, x.mean(0)
    for t in range(4):
        controls.append(-(state - m) @ exact.K[t].mT - m @ exact.Kbar[t].mT)
        state = own.dynamics(t, state, controls[-1], None)
        m = state.mean(0)
    assert float(mfoc.tree.norm(mfoc.evaluate(mfoc.Equilibrium(own), controls, x).gradient)) < 1e-14


def dynamics_of_own(lq):
    """The dynamics where u is ``[N, 1]``, in place of one for all."""
    return lambda t, x, u, z: x @ lq.A.mT + mfoc.mean(x) @ lq.Abar.mT + u @ lq.B.mT


def cost_of_own(lq):
    """The running cost likewise."""

    def cost(t, x, u, z):
        apart = x - mfoc.mean(x) @ lq.S.mT
        return (x.square() @ lq.Q + apart.square() @ lq.Qbar + u.square() @ lq.R)[:, 0]

    return cost


@pytest.mark.parametrize(
    ("solver", "within"),
    [
        (SGD, 5e-12),
        (mfoc.EMSA(adaptive=False), 5e-12),
        (mfoc.meanfield.Picard(LBFGS, steps=1), 1e-6),  # a line search sees J to rounding, u to its root
    ],
    ids=["gradient", "emsa", "picard"],
)
def test_solvers_find_the_closed_form(solver, within):
    lq, x = scalar_game(), normal(6, 1) + 1
    found = mfoc.solve(mfoc.Equilibrium(lq.problem()), solver, x, steps=100, tol=1e-12 if within < 1e-6 else 1e-7)
    exact = mfoc.lq.equilibrium(lq, x.mean(0))
    assert distance(torch.stack(found.controls), exact.controls) < within
    assert distance(exact.controls, lq.open_loop(x.mean(0))) > 0.05


# ---- best responses


def test_a_best_response_holds_the_law_whatever_a_player_does():
    problem, cloud = swarm()
    u, v = torch.stack(problem.controls), normal(4, 2, seed=9)
    player = mfoc.best_response(problem, problem, cloud)
    law = swarm_law(u, cloud.state)
    for w in (u, v):
        found = mfoc.evaluate(player, list(w), cloud)
        assert distance(found.value, swarm_cost(w, cloud.state, *law)) < 1e-14
        expected = torch.autograd.functional.jacobian(lambda v: swarm_cost(v, cloud.state, *law), w)
        assert distance(torch.stack(found.gradient), expected) < 1e-14
    assert not mfoc.interacting.coupling(player, cloud)
    mfoc.testing.check_problem(player, cloud, interacting=False)


def test_a_best_response_is_a_control_problem_in_batches_too():
    problem, cloud = swarm()
    player = mfoc.best_response(mfoc.Equilibrium(problem), problem, cloud)
    mfoc.solve(player, SGD, mfoc.population(cloud, batch_size=2), steps=3)
    mfoc.solve(player, mfoc.EMSA(), cloud, steps=3)
    best = mfoc.solve(player, LBFGS, cloud, steps=2)
    assert "second-order minimum" in str(mfoc.certify(player, best, cloud, lanczos=3, groups=3).verdict)


def test_a_kernel_mean_is_held_for_another_number_of_particles():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u * mfoc.kernel_mean(lambda a, b: torch.sin(b - a), x),
        lambda x, z: x.square().sum(1),
        [torch.ones(2, dtype=D)],
    )
    x = normal(6, 2)
    player = mfoc.best_response(problem, problem, x)
    whole = mfoc.rollout(player, problem, x).cost
    assert distance(mfoc.rollout(player, problem, x[:2]).cost, whole[:2]) < 1e-15
    assert distance(whole, mfoc.rollout(problem, problem, x).cost) == 0


# ---- refusals


@pytest.mark.parametrize(
    ("what", "attempt"),
    [
        ("EMSA", lambda game, x: mfoc.solve(game, mfoc.EMSA(), x, steps=1)),
        (
            "a line search",
            lambda game, x: mfoc.solve(
                game, mfoc.Gradient(partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")), x, steps=1
            ),
        ),
        ("a certificate", lambda game, x: mfoc.certify(game, game, x)),
        ("an adversary", lambda game, x: mfoc.Game.of(game, mfoc.Ball(0.1))),
    ],
    ids=["emsa", "line-search", "certificate", "adversary"],
)
def test_what_compares_values_of_j_is_refused_with_the_cure(what, attempt):
    problem, cloud = swarm()
    with pytest.raises(mfoc.InvalidValue, match=rf"{what}.* compares values of J.*mfoc\.best_response"):
        attempt(mfoc.Equilibrium(problem), cloud)


def test_an_interaction_that_is_not_named_is_refused():
    problem, cloud = CATALOGUE["interacting"]()
    for attempt in (
        lambda: mfoc.solve(mfoc.Equilibrium(problem), SGD, cloud, steps=1),
        lambda: mfoc.best_response(problem, problem, cloud),
    ):
        with pytest.raises(mfoc.InvalidValue, match=r"running_cost of stage 0: .* not named.*mfoc\.mean"):
            attempt()


def test_a_game_has_no_game():
    problem, _ = swarm()
    for other in (mfoc.Equilibrium(problem), mfoc.Game.of(problem, mfoc.Ball(0.1))):
        with pytest.raises(mfoc.InvalidType, match="a game already"):
            mfoc.Equilibrium(other)
    with pytest.raises(mfoc.InvalidType, match=r"expected mfoc\.Problem"):
        mfoc.Equilibrium(lambda t, x, u, z: x)


def test_a_sampled_problem_is_no_game():
    lq = mfoc.lq.LinearQuadratic.continuous(
        **{name: torch.eye(1, dtype=D) for name in ("A", "B", "Q", "R", "Abar")}, T=1.0, steps=4
    ).discretise()
    with pytest.raises(mfoc.InvalidValue, match="sampled one"):
        mfoc.solve(mfoc.Equilibrium(lq.problem()), SGD, normal(3, 1), steps=1)
    with pytest.raises(mfoc.InvalidValue, match="sampled one"):
        mfoc.lq.equilibrium(lq, torch.ones(1, dtype=D))
    mfoc.solve(lq.problem(), SGD, normal(3, 1), steps=1)


# ---- the object


def test_it_is_made_again_from_another_problem_and_prints_a_line():
    problem, _ = swarm()
    game = mfoc.Equilibrium(problem)
    assert repr(game) == f"Equilibrium({problem!r})"
    assert replace(game, problem=replace(problem, interacting="batch")).interacting == "batch"
    assert game.kind is problem.kind
    assert mfoc.controls_of(game) is problem.controls


def split():
    problem, cloud = swarm()
    game = mfoc.Equilibrium(problem)
    mine = cloud[mfoc.distributed.share(torch.arange(len(cloud)))]
    solution = mfoc.solve(game, SGD, mfoc.population(cloud), steps=3)
    player = mfoc.best_response(game, solution, mine)
    found = mfoc.evaluate(player, problem.controls, mine)
    return [torch.stack(solution.controls), found.value, torch.stack(found.gradient)]


@pytest.mark.slow
def test_ranks_change_nothing(tmp_path):
    alone = split()
    for found in on_ranks(tmp_path, split):
        assert distance(found[0], alone) < 1e-13

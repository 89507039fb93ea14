"""The law of the population: means, (co)variances and kernel means of the particles of all ranks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc import distributed
from mfoc.minimisers import LBFGS, Descent
from tests.architectures import batch_norm_net, seeded
from tests.problems import Case, D, discrete_lq, distance, labels, lq_matrices, normal, same_bits
from tests.ranks import on_ranks


def attraction(x, y):
    """A smooth interaction that is not symmetric in its arguments, for vectors ``[..., d]``."""
    return (y - x) * torch.exp(-(x - y).square().sum(-1, keepdim=True)) + y.sin()


# ---- on one rank


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex128])
def test_on_one_rank_the_mean_is_torchs(dtype):
    x = normal(7, 3, 2).to(dtype)
    assert same_bits(mfoc.mean(x), x.mean(0))
    assert same_bits(mfoc.mean(x[:1]), x[0])


def test_variances_and_covariances_divide_by_the_number_of_particles():
    x = normal(7, 3) + 1e6  # a difference of squares would lose eight digits
    assert distance(mfoc.variance(x), x.var(0, correction=0)) < 1e-9
    assert distance(mfoc.covariance(x), torch.cov(x.mT, correction=0)) < 1e-9
    z = torch.complex(normal(7, 3), normal(7, 3, seed=1))
    assert distance(mfoc.variance(z), z.var(0, correction=0)) < 1e-15
    assert distance(mfoc.covariance(z).mT, torch.cov(z.mT, correction=0)) < 1e-14


def test_a_kernel_mean_is_a_mean_over_pairs():
    x, y = normal(5, 2), normal(7, 2, seed=1)
    expected = torch.stack([torch.stack([attraction(a, b) for b in y]).mean(0) for a in x])
    assert distance(mfoc.kernel_mean(attraction, x, y), expected) < 1e-14
    assert same_bits(mfoc.kernel_mean(attraction, x), mfoc.kernel_mean(attraction, x, x))
    flat = mfoc.kernel_mean(lambda a, b: (a - b).square().sum(-1), x)
    assert flat.shape == (5,)
    assert distance(flat.mean(), 2 * mfoc.variance(x).sum()) < 1e-14


@pytest.mark.parametrize(
    "function", [mfoc.mean, mfoc.variance, mfoc.covariance, partial(mfoc.kernel_mean, attraction)], ids=range(4)
)
def test_the_law_is_differentiable_twice_and_under_vmap(function):
    x = normal(4, 2).requires_grad_()
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)
    stack = normal(3, 4, 2)
    assert distance(torch.func.vmap(function)(stack), torch.stack([function(one) for one in stack])) < 1e-15


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: mfoc.mean({"q": torch.ones(2)}), mfoc.InvalidType, "x is a dict"),
        (lambda: mfoc.mean(torch.arange(3)), mfoc.InvalidType, r"int64 tensor.*floating point"),
        (lambda: mfoc.mean(torch.tensor(1.0)), mfoc.InvalidValue, "leading axis"),
        (lambda: mfoc.variance(torch.ones(0, 2)), mfoc.InvalidValue, "at least one particle"),
        (lambda: mfoc.covariance(torch.ones(4)), mfoc.InvalidValue, r"vectors \[N, d\]"),
        (lambda: mfoc.covariance([1.0]), mfoc.InvalidType, "x is a list"),
        (lambda: mfoc.kernel_mean(lambda x, y: x - y, torch.ones(4, 2), [1.0]), mfoc.InvalidType, "x is a list"),
        (lambda: mfoc.kernel_mean(lambda x, y: x, torch.ones(4, 2)), mfoc.InvalidValue, r"\(4, 1, 2\).*\(4, 4, ...\)"),
        (lambda: mfoc.kernel_mean(lambda x, y: 1.0, torch.ones(4, 2)), mfoc.InvalidValue, "returned a float"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


# ---- over ranks: whole problems, in which the law enters in every way


def interacting(schedule=mfoc.per_stage) -> Case:
    """The law in the drift, in the running and the terminal cost, by each of its functions; 7 particles."""

    def drift(t, x, u, z):
        return u * (mfoc.mean(x.tanh()) - x) + 0.3 * mfoc.kernel_mean(attraction, x) + u.sin() * mfoc.variance(x)

    problem = mfoc.continuous(
        drift,
        lambda x, z: (x - z).square().sum(1) + (mfoc.covariance(x) @ x.mT).sum(0).square(),
        [0.3 * normal(2, seed=5 + t) for t in range(3)] if schedule is mfoc.per_stage else 0.3 * normal(2, seed=5),
        running_cost=lambda t, x, u, z: (mfoc.variance(x) * u).square().sum() + x.prod(1).sin() + u.square().sum(),
        scheme=mfoc.heun,
        horizon=3,
        schedule=schedule,
        autonomous=True,
    )
    return problem, mfoc.Particles(normal(7, 2, seed=1), normal(7, 2, seed=2))


def pytrees() -> Case:
    """A state with an integer leaf and a nested one, of which two enter through their law."""

    def dynamics(t, x, u, z):
        crowd = mfoc.mean(F.one_hot(x["token"], 3).to(x["q"]))
        pull = mfoc.mean(x["nested"][0] * x["q"]) - x["q"]
        force = u["gain"][x["token"]] * (pull + crowd @ u["gain"])
        return {"q": x["q"] + 0.2 * force, "nested": (x["nested"][0] + x["q"],), "token": (x["token"] + 1) % 3}

    problem = mfoc.Problem(
        dynamics,
        lambda x, z: (x["q"] - mfoc.mean(x["nested"][0])).square().sum(1),
        [{"gain": 0.3 * normal(3, 1, seed=t)} for t in range(3)],
        running_cost=lambda t, x, u, z: u["gain"].square().sum() + x["q"].square().sum(1) * mfoc.mean(x["q"]).sum(),
    )
    state = {"q": normal(5, 2, seed=1), "nested": (normal(5, 2, seed=2),), "token": torch.arange(5) % 3}
    return problem, mfoc.Particles(state)


def batch_norm() -> Case:
    problem = mfoc.from_module(batch_norm_net(), F.cross_entropy, running_cost=mfoc.weight_decay(0.1))
    return problem, mfoc.Particles(normal(7, 3), labels(7, 2))


def image_norm() -> Case:
    """Batch norm of images, in blocks of equal kind, one without weights."""

    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh())

    def tail() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(2 * 9, 3))

    net = seeded(lambda: nn.Sequential(block(), block(), tail()))
    problem = mfoc.from_module(net, F.cross_entropy, stages=["0", "1", "2"], running_cost=mfoc.weight_decay(0.1))
    return problem, mfoc.Particles(normal(5, 2, 3, 3), labels(5, 3))


def lq(*, feedback: bool) -> Case:
    spec, start, _ = lq_matrices(n=2, m=2)
    spec |= {"B": 0.3 * spec["B"], "Bbar": 0.3 * spec["Bbar"]}  # a stiff problem runs away from any fixed step
    made = discrete_lq(spec, 3)
    problem = made.problem(feedback=feedback)
    noise = normal(7, 3, made.sigma.shape[-1], seed=6)
    controls = mfoc.tree.map(lambda leaf: leaf + 0.1, problem.controls)
    return replace(problem, controls=controls), mfoc.Particles(0.2 * (start + normal(7, 2, seed=3)), 0.2 * noise)


CASES = {
    "interacting": interacting,
    "tied": partial(interacting, mfoc.tied),
    "pytrees": pytrees,
    "batch norm": batch_norm,
    "batch norm of images": image_norm,
    "lq": partial(lq, feedback=False),
    "lq feedback": partial(lq, feedback=True),
}
RUNS = {
    "gradient": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.02, momentum=0.9)), 4),
    "recompute": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.02), recompute=True), 3),
    "msa": (mfoc.MSA(Descent(0.02, steps=3)), 3),
    "emsa": (mfoc.EMSA(1.0, 0.5, inner=Descent(0.01, steps=2), adaptive=False), 2),
    "emsa lbfgs": (mfoc.EMSA(1.0, inner=LBFGS(2, trials=6), adaptive=False), 2),
}


def quantities():
    """J, dJ/du, the states and costates of this rank's particles, and whole solves."""
    found = {}
    for case, make in CASES.items():
        problem, whole = make()
        mine = whole[distributed.share(torch.arange(len(whole)))]
        for recompute in (False, True):
            value, gradient = mfoc.evaluate(problem, problem.controls, mine, recompute=recompute)
            found[case, "J", recompute] = [value, mfoc.tree.leaves(gradient)]
        trajectory = mfoc.rollout(problem, problem.controls, mine)
        costates = mfoc.costates(problem, problem.controls, trajectory, mine)
        found[case, "paths"] = mfoc.tree.copy([mfoc.tree.leaves(part) for part in (trajectory.states, costates)])
        for run, (solver, steps) in RUNS.items():
            solution = mfoc.solve(problem, solver, mfoc.population(whole), steps=steps)
            assert solution.status is mfoc.Status.MAX_STEPS, (case, run, solution)
            found[case, run] = [mfoc.tree.leaves(solution.controls), solution.value, solution.residual]
    return found


def derivatives():
    """Hessians of J and maps of vmap, forward and reverse, through each function of the law."""
    whole, found = normal(7, 2), {}
    mine = whole[distributed.share(torch.arange(7))]
    for name in ("mean", "variance", "covariance", "kernel_mean"):
        function = getattr(mfoc, name)
        function = partial(function, attraction) if name == "kernel_mean" else function

        def cost(u, name=name, function=function):
            x = mine * u + u.square()
            size = function(x.sin()).square()
            size = size.sum(1) if name == "kernel_mean" else size.sum()  # a row for each particle, or one for all
            return (size + x.square().sum(1)) * (1 + x[:, 0])

        u = torch.tensor([0.3, -0.4], dtype=D, requires_grad=True)
        found[name, "vmap"] = torch.func.vmap(lambda s, f=function: f(mine * s))(torch.tensor([1.0, 2.0], dtype=D))
        slope = torch.autograd.grad(cost(u).sum(), u, create_graph=True)[0]
        total = distributed.expectation([slope / len(mine)], len(mine))[0]
        # Sum over ranks of d(slope)/du is the second derivative: each rank's slope is part of the sum's.
        rows = [torch.autograd.grad(slope[k], u, retain_graph=True)[0] for k in range(2)]
        hessian = distributed.expectation([torch.stack(rows) / len(mine)], len(mine))[0]
        found[name, "slope"], found[name, "hessian"] = total, hessian
        found[name, "jvp"] = torch.func.jvp(lambda x, f=function: f(x), (mine,), (mine.sin(),))[1]
    found["count"] = mfoc.law.count(mine)
    for dtype in (torch.float16, torch.bfloat16, torch.complex128):
        found[str(dtype)] = mfoc.mean(mine.to(dtype))
    return found


@pytest.fixture(scope="module")
def alone():
    return quantities(), derivatives()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(tmp_path_factory.mktemp("law"), quantities, derivatives)


def shares(rank: int, whole: list, mine: list) -> float:
    """How far this rank's rows are from those it has of the whole."""
    return max(distance(own, leaf[rank::2]) for own, leaf in zip(mine, whole, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_interacting_problem_is_the_same_on_two_ranks(case, alone, ranks):
    for rank, (found, _) in enumerate(ranks):
        for recompute in (False, True):
            assert distance(found[case, "J", recompute], alone[0][case, "J", recompute]) < 1e-12
        for mine, whole in zip(found[case, "paths"], alone[0][case, "paths"], strict=True):
            assert shares(rank, whole, mine) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_solving_an_interacting_problem_is_the_same_on_two_ranks(case, run, alone, ranks):
    controls, value, residual = alone[0][case, run]
    start = mfoc.tree.leaves(CASES[case]()[0].controls)
    assert distance(controls, start) > 1e-4
    tolerance = 1e-8 if run == "emsa lbfgs" else 1e-12  # a line search amplifies rounding
    for found, _ in ranks:
        assert distance(found[case, run][0], controls) < tolerance
        assert found[case, run][1] == pytest.approx(value, rel=10 * tolerance)
        assert found[case, run][2] == pytest.approx(residual, rel=1e3 * tolerance)
    assert same_bits(*(found[case, run][0] for found, _ in ranks))  # ranks never drift apart


@pytest.mark.slow
def test_derivatives_of_the_law_are_those_of_all_ranks(alone, ranks):
    expected = alone[1]
    for rank, (_, found) in enumerate(ranks):
        for name in ("mean", "variance", "covariance", "kernel_mean"):
            assert distance(found[name, "slope"], expected[name, "slope"]) < 1e-13
            assert distance(found[name, "hessian"], expected[name, "hessian"]) < 1e-12
            for way in ("vmap", "jvp"):
                whole = expected[name, way]
                if name == "kernel_mean":  # a row for each particle
                    whole = whole[rank::2] if way == "jvp" else whole[:, rank::2]
                assert distance(found[name, way], whole) < 1e-13
        assert found["count"] == 7
        for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.complex128, 1e-14)):
            assert distance(found[str(dtype)], expected[str(dtype)]) < tolerance


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mfoc.law.jointly(lambda: None), "clouds is empty"),
        (lambda: mfoc.law.jointly(3, torch.ones(2, 1)), "function is an int"),
        (lambda: mfoc.law.jointly(lambda x, y: x, torch.ones(2, 1), torch.ones(3, 1)), "clouds hold 2 and 3"),
        (lambda: mfoc.law.jointly(lambda x: x.mean(), torch.ones(2, 1)), "function returned"),
        (lambda: mfoc.law.jointly(lambda x: "abc", torch.ones(2, 1)), "function returned a str"),
    ],
)
def test_jointly_refuses_what_has_no_rows(call, message):
    with pytest.raises((mfoc.InvalidType, mfoc.InvalidValue), match=message):
        call()

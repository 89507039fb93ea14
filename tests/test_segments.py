"""Going back several stages at a time changes no number: costates, gradients, memory and cost of it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mfoc
from mfoc.derivatives import tree_gradients
from mfoc.frozen import Sweep
from mfoc.minimisers import Descent
from mfoc.pontryagin import adjoint
from mfoc.segments import cuts, swept_at_once
from tests.oracles.sweeps import swept
from tests.oracles.training import gradient
from tests.problems import CATALOGUE, D, distance, normal, same_bits, swarm

# ---- what a stage may do with a state {"a", "b", "n"} and a control


def moved(x, u):
    return {"a": x["a"] + 0.3 * torch.tanh(x["b"] * u), "b": x["b"] + 0.2 * x["a"].sin(), "n": x["n"] + 1}


def inner(x, u):
    """One leaf is made of another that leaves, too."""
    h = torch.tanh(x["a"] * u)
    return {**x, "a": h, "b": h.sin() + 0.5 * x["b"]}


def shared(x, u):
    h = x["a"] * u
    return {**x, "a": h, "b": h}


STAGES = {
    "moved": moved,
    "inner": inner,
    "shared": shared,
    "same": lambda x, u: x,
    "view": lambda x, u: {**x, "a": x["a"].view_as(x["a"])},
    "swapped": lambda x, u: {**x, "a": x["b"], "b": x["a"]},
    "constant": lambda x, u: {**x, "a": torch.ones_like(x["a"])},
    "lost": lambda x, u: {"a": torch.ones_like(x["a"]), "b": x["b"].detach(), "n": x["n"]},
    "detached": lambda x, u: {**x, "a": x["a"].detach() * u},
    "control": lambda x, u: {**x, "b": u.expand_as(x["b"])},
    "law": lambda x, u: {**x, "a": x["a"] + u * mfoc.mean(x["b"])},
}
N, W = 4, 2  # 1 / N is exact in every dtype


def control(t, lead):
    return 0.7 * normal(*lead, W, seed=100 + t)


SCHEDULES = {
    "per_stage": lambda T: ([control(t, ()) for t in range(T)], {}),
    "per_particle": lambda T: ([control(t, (N,)) for t in range(T)], {"per_particle": True}),
    "tied": lambda T: (control(0, ()), {"schedule": mfoc.tied, "horizon": T}),
    "in pairs": lambda T: (
        [control(t, ()) for t in range((T + 1) // 2)],
        {"schedule": lambda u, t: u[t // 2] * (1 + t), "horizon": T},
    ),
}


def running(t, x, u, z):
    """At some stages it is of the states, of the control, of no derivative, or another dtype."""
    a, b = x["a"], x["b"]
    return [(a * b * u).sum(1), u.square().sum(-1).expand(len(a)), a.new_zeros(len(a)), (a - z).sum(1).float()][t % 4]


def terminal(x, z):
    return (x["a"].square() + x["b"].sin() * z).sum(1)


@st.composite
def problems(draw):
    names = draw(st.lists(st.sampled_from(sorted(STAGES)), min_size=1, max_size=30))
    controls, how = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))](len(names))
    how["running_cost"] = draw(st.sampled_from([None, running]))
    problem = mfoc.Problem(lambda t, x, u, z: STAGES[names[t]](x, u), terminal, controls, **how)
    state = {"a": normal(N, W, seed=1), "b": normal(N, W, seed=2), "n": torch.arange(N)}
    return problem, mfoc.Particles(state, normal(N, W, seed=3))


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([True, 1, 2, 5, 100]))
def test_recomputed_slopes_are_those_of_backpropagation(case, recompute):
    problem, cloud = case
    free = mfoc.tree.detached(problem.controls, requires_grad=True)
    cost = mfoc.rollout(problem, free, cloud).cost
    expected = tree_gradients(cost.mean(), [free])[0]
    found = mfoc.evaluate(problem, problem.controls, cloud, recompute=recompute)
    assert distance(found.gradient, expected) < 1e-12
    assert same_bits(found.value, cost.detach().mean())


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_costates_are_those_of_the_formulas_at_whatever_states_are_given(case, elsewhere):
    problem, cloud = case
    states, cost = mfoc.rollout(problem, problem.controls, cloud)
    if elsewhere:  # as in multiple shooting
        states = [
            mfoc.tree.map(lambda v, t=t: v + 0.3 * normal(*v.shape, seed=t) if v.is_floating_point() else v, x)
            for t, x in enumerate(states)
        ]
    expected = swept(problem, problem.controls, states, cloud)
    found = adjoint(problem, problem.controls, mfoc.pontryagin.Trajectory(states, cost), cloud)
    assert len(found[0]) == problem.stages + 1
    assert all(mfoc.tree.same_structure(p, x) for p, x in zip(found[0], states, strict=True))
    assert distance(found[0], expected[0]) < 1e-11
    assert distance(found[1], expected[1]) < 1e-11
    assert not any(leaf.requires_grad for leaf in mfoc.tree.leaves(list(found)))


def test_a_given_state_is_matched_by_key():
    """Dicts have no order: a trajectory may hold its keys in another one."""
    problem, cloud = CATALOGUE["pytrees"]()
    trajectory = mfoc.rollout(problem, problem.controls, cloud)
    turned = trajectory._replace(states=[dict(reversed(x.items())) for x in trajectory.states])
    for p, q in zip(*(mfoc.costates(problem, problem, each, cloud) for each in (trajectory, turned)), strict=True):
        assert same_bits(p, {key: q[key] for key in p})


def test_tokens_on_the_way_carry_no_slope():
    """A state without a floating-point leaf between stages that have some."""
    problem = mfoc.Problem(
        lambda t, x, u, z: [x * u, (x * u > 0).long().sum(1, keepdim=True), x * u, x * u][t],
        lambda x, z: x.square().sum(1),
        [control(t, ()) for t in range(4)],
    )
    cloud = mfoc.Particles(normal(5, W))
    expected = gradient(problem, problem.controls, cloud)
    assert distance(mfoc.evaluate(problem, problem, cloud, recompute=2).gradient, expected) < 1e-14
    assert distance(Sweep.at(problem, problem.controls, cloud).gradient, expected) < 1e-14


# ---- how much is in memory, and how often stages are evaluated


class Held:
    """Counts the tensors that graphs hold for their derivatives."""

    def __init__(self):
        self.now = self.most = 0

    def __enter__(self):
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda box: box.value)
        self._hooks.__enter__()
        return self

    def __exit__(self, *_):
        self._hooks.__exit__(*_)

    def _pack(self, value):
        self.now += 1
        self.most = max(self.most, self.now)
        return Box(value, self)


class Box:
    def __init__(self, value, held):
        self.value, self.held = value, held

    def __del__(self):
        self.held.now -= 1


def long(stages=100, **how):
    seen = []

    def dynamics(t, x, u, z):
        seen.append(t)
        return torch.tanh(x * u)  # holds x, u and what is returned

    controls = [control(t, ()) for t in range(stages)]
    return mfoc.Problem(dynamics, lambda x, z: x.sum(1), controls, **how), mfoc.Particles(normal(N, W)), seen


@pytest.mark.parametrize(("recompute", "length"), [(False, 100), (True, 10), (1, 1), (7, 7), (1000, 100)])
def test_a_segment_is_in_memory_at_a_time_and_evaluated_twice_at_most(recompute, length, monkeypatch):
    problem, cloud, seen = long()
    calls, own = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **how: (calls.append(0), own(*args, **how))[1])
    with Held() as held:
        mfoc.evaluate(problem, problem, cloud, recompute=recompute)
    assert held.most / 3 == pytest.approx(length, abs=1)
    assert held.now == 0
    last = 100 % length or length
    assert len(seen) == 200 - last  # the last segment is not run twice
    assert len(calls) == -(-100 // length)


def test_a_sweep_holds_a_segment_and_evaluates_each_stage_once():
    problem, cloud, seen = long()
    trajectory = mfoc.rollout(problem, problem, cloud)
    seen.clear()
    with Held() as held:
        mfoc.costates(problem, problem, trajectory, cloud)
    assert held.most <= 3 * 10 + 3
    assert sorted(seen) == list(range(100))


@given(st.integers(1, 500), st.sampled_from([True, 1, 2, 30, 500]))
def test_cuts_cover_the_stages_in_order(stages, recompute):
    found = cuts(stages, recompute)
    assert [t for part in found for t in part] == list(range(stages))
    if recompute is True:
        assert max(len(found), *map(len, found)) ** 2 < stages + 2 * stages**0.5 + 1


@pytest.mark.parametrize("make", [partial(mfoc.Gradient, torch.optim.SGD), None], ids=["solver", "evaluate"])
def test_recompute_says_what_it_takes(make):
    problem, cloud, _ = long(3)
    make = make or partial(mfoc.evaluate, problem, problem, cloud)
    for wrong in ("yes", 2.0, None):
        with pytest.raises(mfoc.InvalidType, match=r"recompute is .* expected True, False, or how many stages"):
            make(recompute=wrong)
    for wrong in (0, -1):
        with pytest.raises(mfoc.InvalidValue, match="recompute"):
            make(recompute=wrong)


def test_gradient_recomputes_as_many_stages_as_it_is_told():
    problem, cloud, _ = long(10)
    stored = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), cloud, steps=2)
    for recompute in (1, 3):
        solver = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1), recompute=recompute)
        assert distance(stored.controls, mfoc.solve(problem, solver, cloud, steps=2).controls) < 1e-14


@pytest.mark.parametrize("stages", [3, 5])
def test_controls_of_other_stages_are_refused(stages):
    problem, cloud, _ = long(4)
    trajectory, wrong = mfoc.rollout(problem, problem, cloud), [control(t, ()) for t in range(stages)]
    for door in (partial(mfoc.evaluate, recompute=True), partial(mfoc.evaluate, recompute=1)):
        with pytest.raises(mfoc.InvalidValue, match=f"controls has {stages} stages; the problem has 4"):
            door(problem, wrong, cloud)
    with pytest.raises(mfoc.InvalidValue, match=f"controls has {stages} stages; the problem has 4"):
        mfoc.costates(problem, wrong, trajectory, cloud)


# ---- MSA by gradient steps


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", [*CATALOGUE, "swarm"])
def test_descent_from_the_slope_of_the_sweep_is_descent_on_h(name, steps):
    problem, cloud = (CATALOGUE | {"swarm": swarm})[name]()
    inner = Descent(0.05, steps)
    expected, _ = Sweep.at(problem, problem.controls, cloud).minimised(inner)
    found, _, info = mfoc.MSA(inner).step(problem, problem.controls, {}, cloud)
    assert distance(found, problem.controls) > 1e-4
    assert distance(found, expected) < 1e-12
    assert mfoc.tree.same_structure(found, problem.controls)
    assert info.extra["unbounded_stages"] == 0
    assert (info.extra["inner_evaluations"] == 0) == (steps == 1)


@pytest.mark.parametrize("kind", [None, lambda t: "step"], ids=["alone", "stacked"])
@pytest.mark.parametrize("lead", [(), (N,)], ids=["shared", "per particle"])
@pytest.mark.parametrize(
    "bounds", [mfoc.Box(-0.4, 0.4), mfoc.L1(0.3), mfoc.Ball(0.5, "l2"), mfoc.Simplex(), None], ids=str
)
def test_within_bounds_too(bounds, lead, kind):
    controls = [torch.full((*lead, W), 0.3 if t % 2 else 0.0, dtype=D) for t in range(5)]
    if isinstance(bounds, mfoc.Simplex):
        controls = [torch.full((*lead, W), 0.5, dtype=D) for _ in range(5)]
    problem = mfoc.Problem(
        lambda t, x, u, z: x + 0.5 * torch.tanh(x * u) + u,
        lambda x, z: x.square().sum(1),
        controls,
        bounds=bounds,
        per_particle=bool(lead),
        kind=kind,
    )
    cloud = mfoc.Particles(2 * normal(N, W, seed=1))
    for steps in (1, 3):
        inner = Descent(0.1, steps)
        expected, _ = Sweep.at(problem, controls, cloud).minimised(inner)
        found, _, _ = mfoc.MSA(inner).step(problem, controls, {}, cloud)
        assert distance(found, controls) > 1e-3
        assert distance(found, expected) < 1e-13


def test_one_gradient_step_costs_a_sweep():
    problem, cloud, seen = long(20)
    mfoc.MSA(Descent(0.1)).step(problem, problem.controls, {}, cloud)
    assert len(seen) == 40  # forward, and on the way back
    with_cost = replace(problem, running_cost=lambda t, x, u, z: (seen.append(t), x.sum(1))[1])
    seen.clear()
    mfoc.MSA(Descent(0.1)).step(with_cost, problem.controls, {}, cloud)
    assert len(seen) == 80


def test_a_descent_of_ones_own_is_asked_for_every_step():
    class Halved(Descent):
        def minimise(self, evaluate, start, region=None):
            return super().minimise(evaluate, start, region)._replace(point=start / 2)

    problem, cloud, _ = long(3)
    found, _, _ = mfoc.MSA(Halved(0.1)).step(problem, problem.controls, {}, cloud)
    assert distance(found, [u / 2 for u in problem.controls]) == 0


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_sweep_at_once_is_the_sweep_of_segments(name):
    """Whatever stages do with their states; to the bit where each has a control of its own."""
    problem, cloud = CATALOGUE[name]()
    with torch.no_grad():
        trajectory = mfoc.rollout(problem, problem.controls, cloud)
    costates, gradient = adjoint(problem, problem.controls, trajectory, cloud)
    expected = [trajectory.states, trajectory.cost, costates, gradient]
    found = list(swept_at_once(problem, problem.controls, cloud))
    assert not any(leaf.requires_grad for leaf in mfoc.tree.leaves(found))
    for a, b in zip(expected, found, strict=True):
        assert distance(a, b) < (1e-30 if problem.per_stage else 1e-13)

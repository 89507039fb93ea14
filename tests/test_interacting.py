"""Whether particles interact is seen by values; what batches or ranks would change in silence is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.interacting import coupling
from mfoc.minimisers import Descent
from tests.architectures import batch_norm_net, mlp_net
from tests.problems import CATALOGUE, D, distance, labels, normal
from tests.ranks import on_ranks

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.05))
CLOUD = mfoc.Particles(normal(12, 2), normal(12, 2, seed=1))


def problem(term, *, at="dynamics", stage=1, **options) -> mfoc.Problem:
    """Particles alone, but for ``term(x)`` ``[..., 2]`` in one place; the control starts at zero and multiplies it."""

    def dynamics(t, x, u, z):
        moved = x + 0.1 * torch.tanh(x) * u + z
        return moved + u * term(x) if at == "dynamics" and t == stage else moved

    def running_cost(t, x, u, z):
        cost = (x - u).square().sum(1)
        return cost + (u * term(x)).sum(-1) if at == "running_cost" and t == stage else cost

    def terminal_cost(x, z):
        return (x - z).square().sum(1) + (term(x).sum(-1) if at == "terminal_cost" else 0)

    controls = [torch.zeros(2, dtype=D) for _ in range(3)]
    return mfoc.Problem(dynamics, terminal_cost, controls, running_cost=running_cost, **options)


def attraction(x, y):
    return (y - x) / (1 + (x - y).square().sum(-1, keepdim=True))


UNNAMED = {
    "mean": lambda x: x.mean(0) - x,
    "weak": lambda x: 1e-9 * x.mean(0),
    "detached": lambda x: x.mean(0).detach() * x,
    "rank": lambda x: x.argsort(0).argsort(0).to(x),
    "sorted": lambda x: x.sort(0).values,
    "largest": lambda x: x - x.amax(0),
    "median": lambda x: x.median(0).values.detach(),
    "neighbour": lambda x: x.roll(1, 0),
    "near by only": lambda x: torch.exp(-1e4 * torch.cdist(x, x).square()).mean(1, keepdim=True),
    "two away": lambda x: x.roll(2, 0),
    "leader": lambda x: x[:1] - x,
    "reversed": lambda x: x.flip(0),
    "normalised": lambda x: F.batch_norm(x, None, None, training=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "through the others": lambda x: (x.sum(0) - x) / max(1, len(x) - 1),
    "beside a named one": lambda x: mfoc.mean(x) + x.mean(0).square(),
    "in pieces": lambda x: x.view(-1, 6, 2).mean(1).repeat_interleave(6, 0),  # not for every number of particles
}
NAMED = {
    "mean": lambda x: mfoc.mean(x) - x,
    "moments": lambda x: mfoc.variance(x) * (mfoc.covariance(x).sum() + mfoc.mean(x.square())),
    "kernel": lambda x: mfoc.kernel_mean(attraction, x),
    "of another function": lambda x: (x - mfoc.mean(x * mfoc.mean(x.sin()))).square(),
    "alone": lambda x: mfoc.mean(x.new_ones(len(x), 2)),
}
ALONE = {
    "smooth": lambda x: x.sin() * x.norm(dim=1, keepdim=True),
    "matrices": lambda x: x.repeat(1, 50) @ normal(100, 2, seed=3),
    "softmax over coordinates": lambda x: x.softmax(1),
    "layer norm": lambda x: F.layer_norm(x, (2,)),
    "logarithm": lambda x: (x + 3).log(),  # not a number where a particle is put too far
    "number of particles": lambda x: x / len(x),
}


@pytest.mark.parametrize("at", ["dynamics", "running_cost", "terminal_cost"])
@pytest.mark.parametrize("name", UNNAMED)
def test_any_dependence_on_another_particle_is_seen_and_placed(name, at):
    found = coupling(problem(UNNAMED[name], at=at), CLOUD)
    assert found
    assert found.elsewhere == (at if at == "terminal_cost" else f"{at} of stage 1")
    assert found.named == (name == "beside a named one")


@pytest.mark.parametrize("at", ["dynamics", "running_cost", "terminal_cost"])
@pytest.mark.parametrize("name", NAMED)
def test_the_named_law_is_no_other_dependence(name, at):
    found = coupling(problem(NAMED[name], at=at), CLOUD)
    assert found
    assert found.named
    assert found.elsewhere is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALONE)
def test_particles_that_are_alone_are_not_taken_for_others(name, dtype):
    alone = problem(ALONE[name])
    if name == "matrices":  # closes over a matrix of its own dtype
        dtype = D
    alone = replace(alone, controls=mfoc.tree.map(lambda leaf: leaf.to(dtype), alone.controls))
    cloud = CLOUD.to(dtype)
    assert not coupling(alone, cloud)
    assert not coupling(replace(alone, kind=lambda t: t), cloud[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dependence_is_seen_in_other_dtypes(dtype):
    made = problem(UNNAMED["mean"])
    made = replace(made, controls=mfoc.tree.map(lambda leaf: leaf.to(dtype), made.controls))
    assert coupling(made, CLOUD.to(dtype)).elsewhere == "dynamics of stage 1"


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_dependence_is_seen_with_few_particles_and_where_all_are_in_one_place(n):
    here = mfoc.Particles(torch.zeros(n, 2, dtype=D), torch.zeros(n, 2, dtype=D))
    assert coupling(problem(lambda x: x.mean(0)), here).elsewhere == "dynamics of stage 1"
    assert not coupling(problem(lambda x: x), here)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogue(name):
    made, cloud = CATALOGUE[name]()
    found = coupling(made, cloud)
    assert not found.named
    assert (found.elsewhere is not None) == (name in ("interacting", "batch_norm"))


@pytest.mark.parametrize("leaf", ["q", "v", "token"])
def test_dependence_through_any_leaf_of_a_state_is_seen(leaf):
    """Integers are moved among those that there are."""

    def dynamics(t, x, u, z):
        push = {"q": x["q"].mean(), "v": x["v"][0].amax(0), "token": (x["token"] == 2).to(x["q"]).sum()}.get(leaf)
        return {"q": x["q"] + u * push, "v": (x["v"][0],), "token": (x["token"] + 1) % 3}

    made = mfoc.Problem(dynamics, lambda x, z: x["q"].sum(1), [torch.zeros(1, dtype=D)])
    state = {"q": normal(5, 2), "v": (normal(5, 2, seed=1),), "token": torch.arange(5) % 3}
    assert coupling(made, mfoc.Particles(state)).elsewhere == "dynamics of stage 0"
    apart = replace(made, dynamics=lambda t, x, u, z: {**x, "q": x["q"] + u * x["token"][:, None]})
    assert not coupling(apart, mfoc.Particles(state))


def test_dependence_of_an_integer_result_is_seen():
    made = mfoc.Problem(
        lambda t, x, u, z: {"q": x["q"] + u, "token": x["token"].flip(0)},
        lambda x, z: x["q"].sum(1),
        [torch.zeros(1, dtype=D)],
    )
    found = coupling(made, mfoc.Particles({"q": normal(5, 2), "token": torch.arange(5)}))
    assert found.elsewhere == "dynamics of stage 0"


def test_tied_controls_and_stages_of_equal_kind():
    made = mfoc.Problem(
        lambda t, x, u, z: x + u * x.mean(0),
        lambda x, z: x.square().sum(1),
        torch.zeros(2, dtype=D),
        horizon=3,
        schedule=mfoc.tied,
        kind=lambda t: "step",
    )
    assert coupling(made, CLOUD).elsewhere == "dynamics of stage 0"
    mixed = problem(UNNAMED["mean"], kind=lambda t: t == 1)
    assert coupling(mixed, CLOUD).elsewhere == "dynamics of stage 1"


def test_looking_changes_nothing_and_draws_nothing():
    made, before = problem(UNNAMED["mean"]), torch.get_rng_state()
    kept = mfoc.tree.copy([made.controls, CLOUD.state, CLOUD.data])
    coupling(made, CLOUD)
    assert torch.equal(before, torch.get_rng_state())
    assert distance(kept, [made.controls, CLOUD.state, CLOUD.data]) == 0


def test_paths_that_explode_are_looked_at_as_they_are():
    made = mfoc.Problem(
        lambda t, x, u, z: (x + u).exp().exp(), lambda x, z: x.sum(1), [torch.full((1,), 9.0, dtype=D)] * 3
    )
    assert not coupling(made, CLOUD)


# ---- what solve refuses


def drawn(step: int) -> mfoc.Particles:
    return CLOUD


BATCHED = {
    "batches": partial(mfoc.population, CLOUD, batch_size=5),
    "one by one": partial(mfoc.population, CLOUD, batch_size=1),
    "drawn": partial(mfoc.population, drawn),
}
WHOLE = {
    "cloud": partial(mfoc.population, CLOUD),
    "one batch": partial(mfoc.population, CLOUD, batch_size=12),
    "a larger one": partial(mfoc.population, CLOUD, batch_size=50),
}


@pytest.mark.parametrize("source", BATCHED)
@pytest.mark.parametrize(("term", "words"), [(NAMED["mean"], "population's law"), (UNNAMED["mean"], "of stage 1")])
def test_batches_of_interacting_particles_are_refused_unless_each_is_a_population(term, words, source):
    made = problem(term)
    for begin in (partial(mfoc.solve, steps=1), mfoc.iterate):
        with pytest.raises(mfoc.InvalidValue, match=rf'{words}.*minibatch.*interacting="batch"'):
            begin(made, SGD, BATCHED[source]())
    own = replace(made, interacting="batch")
    assert mfoc.solve(own, SGD, BATCHED[source](), steps=2).status is mfoc.Status.MAX_STEPS
    game = mfoc.Game.of(made, mfoc.Ball(0.1))
    with pytest.raises(mfoc.InvalidValue, match="minibatch"):
        mfoc.solve(game, SGD, BATCHED[source](), steps=1, nominal=True)
    assert mfoc.Game.of(own, mfoc.Ball(0.1)).interacting == "batch"


@pytest.mark.parametrize("source", WHOLE)
@pytest.mark.parametrize("term", [NAMED["mean"], UNNAMED["mean"]], ids=["named", "unnamed"])
def test_interacting_particles_are_solved_all_at_once(term, source):
    solution = mfoc.solve(problem(term), SGD, WHOLE[source](), steps=2)
    assert solution.status is mfoc.Status.MAX_STEPS


@pytest.mark.parametrize(
    "solver", [SGD, mfoc.MSA(Descent(0.05)), mfoc.EMSA(1.0, inner=Descent(0.05), adaptive=False)], ids=repr
)
@pytest.mark.parametrize("source", BATCHED)
def test_batches_of_particles_that_are_alone_are_solved(source, solver):
    assert mfoc.solve(problem(ALONE["smooth"]), solver, BATCHED[source](), steps=2).status is mfoc.Status.MAX_STEPS


def test_the_mean_of_a_square_is_another_problem_on_batches():
    """J = (E[u x])^2 - u + .01 u^2, whose minimum in u is 1 / (2 (m^2 + .01)): on batches m^2 gains var(x) / n."""

    def made(mean, **options):
        return mfoc.Problem(
            lambda t, x, u, z: x,
            lambda x, z: x.new_zeros(len(x)),
            [torch.zeros(1, dtype=D)],
            running_cost=lambda t, x, u, z: (mean(u * x).square() - u + 0.01 * u.square()).expand(len(x), 1)[:, 0],
            **options,
        )

    x = normal(2000, 1)
    x = (x - x.mean()) / x.std(correction=0)  # m = 0, so that the minimum is at u = 50
    solver = mfoc.Gradient(partial(torch.optim.SGD, lr=25.0))
    for mean in (mfoc.mean, lambda y: y.mean(0)):
        found = mfoc.solve(made(mean), solver, x, steps=60).controls[0]
        assert float(found) == pytest.approx(50.0, rel=1e-6)
        batches = mfoc.population(x, batch_size=10)
        with pytest.raises(mfoc.InvalidValue, match=r"minibatch \(of 10 of 2000 particles\)"):
            mfoc.solve(made(mean), solver, batches, steps=1)
        small = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
        own = mfoc.solve(made(mean, interacting="batch"), small, batches, steps=200)
        assert 2.5 < float(own.controls[0]) < 8  # 1 / (2 (0.1 + 0.01)) = 4.5, but for the noise of batches


def test_other_words_are_refused():
    for word, error in (("batches", mfoc.InvalidValue), (True, mfoc.InvalidType)):
        with pytest.raises(error, match="interacting is"):
            problem(ALONE["smooth"], interacting=word)
        with pytest.raises(error, match="interacting is"):
            mfoc.continuous(lambda t, x, u, z: u, lambda x, z: x.sum(1), [torch.zeros(2, dtype=D)], interacting=word)


def test_linear_quadratic_problems_name_the_law_where_there_is_one():
    eye = torch.eye(2, dtype=D)
    plain = mfoc.lq.LinearQuadratic.discrete(eye, eye, eye, eye, horizon=3)
    coupled = mfoc.lq.LinearQuadratic.discrete(eye, eye, eye, eye, horizon=3, Qbar=eye)
    cloud = mfoc.Particles(normal(9, 2))
    assert not coupling(plain.problem(), cloud)
    for made in (plain.problem(feedback=True), coupled.problem(), coupled.problem(feedback=True)):
        found = coupling(made, cloud)
        assert found.named
        assert found.elsewhere is None
        with pytest.raises(mfoc.InvalidValue, match="minibatch"):
            mfoc.solve(made, SGD, mfoc.population(cloud, batch_size=3), steps=1)


# ---- networks


def test_training_with_batch_norm_on_batches_is_said_in_one_line(caplog):
    data = normal(8, 3), labels(8, 2)
    made = mfoc.from_module(batch_norm_net(), F.cross_entropy)
    assert made.interacting == "batch"
    with caplog.at_level(logging.INFO, logger="mfoc"):
        mfoc.solve(made, SGD, mfoc.population(data, batch_size=4), steps=3)
    assert [record.getMessage() for record in caplog.records if "population of its own" in record.getMessage()]
    assert len(caplog.records) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="mfoc"):
        mfoc.solve(made, SGD, data, steps=1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("net", "word"),
    [
        (mlp_net(), None),
        (batch_norm_net().eval(), None),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(), "batch"),
        (nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.LayerNorm(4)), None),
    ],
)
def test_networks_say_whether_their_particles_interact(net, word):
    made = mfoc.from_module(net.double(), F.cross_entropy)
    assert made.interacting == word
    assert bool(coupling(made, mfoc.Particles(normal(8, 3), labels(8, 2)))) == (word is not None)


def test_a_layer_that_mixes_the_batch_is_refused_on_batches():
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    net = nn.Sequential(nn.Linear(3, 3), Centred(), nn.Linear(3, 2)).double()
    made, source = mfoc.from_module(net, F.cross_entropy), mfoc.population((normal(8, 3), labels(8, 2)), batch_size=4)
    with pytest.raises(mfoc.InvalidValue, match=r"dynamics of stage 1.*minibatch"):
        mfoc.solve(made, SGD, source, steps=1)
    mfoc.solve(replace(made, interacting="batch"), SGD, source, steps=1)


# ---- law 9: what is a particle's own does not depend on the cloud it is in


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in ("interacting", "batch_norm")])
def test_cutting_or_doubling_a_cloud_changes_nothing_of_its_particles(name):
    made, cloud = CATALOGUE[name]()

    def own(particles):
        trajectory = mfoc.rollout(made, made.controls, particles)
        return [trajectory.cost, *mfoc.costates(made, made.controls, trajectory, particles)]

    whole = own(cloud)
    for size in (1, 2, 3, len(cloud) - 1):
        for first in range(0, len(cloud), size):
            part = own(cloud[first : first + size])
            assert distance(part, mfoc.tree.map(lambda leaf: leaf[first : first + size], whole)) < 1e-12  # noqa: B023
    doubled = own(cloud[torch.arange(2 * len(cloud)) % len(cloud)])
    assert distance(mfoc.tree.map(lambda leaf: leaf[len(cloud) :], doubled), whole) < 1e-12


# ---- on two ranks


def answers():
    """What solve answers to each problem on each population."""
    found = {}
    for name, term in (("alone", ALONE["smooth"]), ("named", NAMED["mean"]), ("unnamed", UNNAMED["mean"])):
        for word in (None, "batch"):
            for size in (None, 4):
                made = problem(term, interacting=word)
                try:
                    mfoc.solve(made, SGD, mfoc.population(CLOUD, batch_size=size), steps=1)
                    found[name, word, size] = ""
                except mfoc.InvalidValue as error:
                    found[name, word, size] = str(error)
    return found


@pytest.mark.slow
def test_what_is_refused_on_two_ranks(tmp_path):
    for (found,) in on_ranks(tmp_path, answers):
        for (name, word, size), message in found.items():
            if name == "unnamed":
                assert "Write the dependence with mfoc.mean" in message
            elif name == "named" and word is None and size is not None:
                assert "minibatch" in message
            else:
                assert message == ""

"""Discrete latents that are summed out: against Pyro, sums over all assignments, and the forward algorithm."""

import itertools
import math

import pytest
import torch

import mfoc
from mfoc.testing import check_formulation
from paradigms.bayesian import log_density, predict, svgd, variational
from paradigms.bayesian.pyro.log_einsum import einsum, tensordot
from tests.paradigms.bayesian.vi.test_of_model import adam, on_noise
from tests.problems import normal

pyro = pytest.importorskip("pyro")
dist, poutine = pyro.distributions, pyro.poutine
guides = pyro.infer.autoguide
enumerated = pyro.infer.config_enumerate
pytestmark = pytest.mark.usefixtures("double")
PARALLEL = {"enumerate": "parallel"}


@pytest.fixture
def y():
    return torch.tensor([-2.0, -1.5, 2.5, 1.8])


@enumerated
def mixture(y=None, n=4):
    """A mixture of two normals, with an assignment for each observation."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", n if y is None else len(y)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("y", dist.Normal(m[z], s), obs=y)


def chain(y):
    """A hidden Markov chain of three states."""
    with pyro.plate("states", 3):
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3)))
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
    x = 0
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x{t}", dist.Categorical(rows[x]), infer=PARALLEL)
        pyro.sample(f"y{t}", dist.Normal(m[x], 1.0), obs=y[t])


@enumerated
def switch(y):
    """One discrete latent for all, on which the prior of a continuous one depends."""
    z = pyro.sample("z", dist.Bernoulli(0.3))
    a = pyro.sample("a", dist.Normal(2 * z - 1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)


@enumerated
def local(y):
    """A continuous latent for each observation, whose mean its own discrete one chooses; and one that nothing sees."""
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("unseen", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        a = pyro.sample("a", dist.Normal(m[z.long()], 0.5))
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)


@enumerated
def nested(y):
    """A choice for each group of two, and one for each member, that depends on it."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 2, dim=-1):
        g = pyro.sample("g", dist.Bernoulli(0.3))
        with pyro.plate("members", len(y) // 2, dim=-2):
            h = pyro.sample("h", dist.Bernoulli(0.2 + 0.6 * g))
            pyro.sample("y", dist.Normal(a + h - 2 * g, 1.0), obs=y.reshape(-1, 2))


@enumerated
def masked(y):
    """Two sequences of unequal length side by side, as in Pyro's examples of hidden Markov chains."""
    p = pyro.sample("p", dist.Beta(torch.ones(2), 2.0).to_event(1))
    data, lengths = y.reshape(2, 2), torch.tensor([2, 1])
    with pyro.plate("sequences", 2):
        x = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(2)):
            with poutine.mask(mask=t < lengths):
                x = pyro.sample(f"x{t}", dist.Bernoulli(pyro.ops.indexing.Vindex(p)[x.long()]))
                pyro.sample(f"y{t}", dist.Normal(x, 1.0), obs=data[:, t])


@enumerated
def weighted(y):
    """A scale on everything, which is outside of the sum."""
    with poutine.scale(scale=2.5):
        mixture(y)


MODELS = [mixture, chain, switch, local, nested, masked, weighted]
NESTING = {nested: 2}


@pytest.mark.parametrize("guide", [guides.AutoMultivariateNormal, guides.AutoDelta])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_objective_and_its_gradient_are_those_of_traceenum_elbo(model, guide, y, monkeypatch):
    f = variational(model, (y,), guide=guide, samples=2)
    made, cloud = f.readout(f.problem), f.population(3)
    value, (gradient,) = mfoc.evaluate(f.problem, f.problem.controls, cloud)
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=NESTING.get(model, 1)).differentiable_loss
    loss = sum(on_noise(monkeypatch, eps, lambda: elbo(model, made, y)) for eps in cloud.state) / (2 * 4)
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-12)
    names, own = zip(*made.named_parameters(), strict=True)
    for name, theirs in zip(names, torch.autograd.grad(loss, own), strict=True):
        torch.testing.assert_close(gradient[name], theirs, rtol=1e-9, atol=1e-12)


def over_all_assignments(model, y, values):
    """The log of the sum of the joint density over every value of every discrete latent, by conditioning on it."""
    free = poutine.util.prune_subsample_sites(poutine.trace(poutine.condition(model, values)).get_trace(y))
    names = [name for name, site in free.iter_stochastic_nodes() if name not in values]
    supports = []
    for name in names:
        site = free.nodes[name]
        levels = site["fn"].enumerate_support(expand=False).flatten()
        shape = site["value"].shape
        supports.append([torch.stack(v).reshape(shape) for v in itertools.product(levels, repeat=shape.numel())])
    logs = []
    for assignment in itertools.product(*supports):
        known = {**values, **dict(zip(names, assignment, strict=True))}
        logs.append(poutine.trace(poutine.condition(model, known)).get_trace(y).log_prob_sum())
    return torch.stack(logs).logsumexp(0)


@pytest.mark.parametrize(
    ("model", "n"),
    [(mixture, 3), (mixture, 1), (chain, 3), (switch, 4), (local, 2), (local, 1), (nested, 4)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_density_is_the_sum_over_all_assignments(model, n, y):
    """On the line: with the volume of the map from it. A plate of one is a plate, too."""
    y = y[:n]
    density = log_density(model, (y,), traced=False)
    x = density.initial(2, seed=1)
    for point, value, named in zip(x, density(x), range(2), strict=True):
        values = {name: leaf[named] for name, leaf in density.named(x).items()}
        volume, trace = 0.0, poutine.trace(poutine.condition(model, values)).get_trace(y)
        for name, free in density.unravel(point).items():
            to = torch.distributions.biject_to(trace.nodes[name]["fn"].support)
            volume = volume + to.log_abs_det_jacobian(free, to(free)).sum()
        expected = over_all_assignments(model, y, values) + volume
        assert float(value) == pytest.approx(float(expected), rel=1e-12)


def test_a_hidden_markov_chain_is_the_forward_algorithm():
    y = normal(12, seed=3)
    density = log_density(chain, (y,))  # too long to be recorded
    x = density.initial(1)
    named = {name: leaf[0] for name, leaf in density.named(x).items()}
    likelihoods = dist.Normal(named["m"], 1.0).log_prob(y[:, None])
    alpha = named["rows"][0].log() + likelihoods[0]
    for t in range(1, 12):
        alpha = (alpha[:, None] + named["rows"].log()).logsumexp(0) + likelihoods[t]
    to = torch.distributions.biject_to(torch.distributions.constraints.simplex)
    free = density.unravel(x[0])["rows"]
    volume = to.log_abs_det_jacobian(free, to(free)).sum()
    prior = 3 * math.log(2) + dist.Normal(0.0, 3.0).log_prob(named["m"]).sum()
    assert float(density(x)) == pytest.approx(float(alpha.logsumexp(0) + prior + volume), rel=1e-12)


def test_the_prior_of_a_latent_that_depends_on_a_discrete_one_is_a_mixture(y):
    """So that tau weighs the divergence from the marginal prior, and the likelihood is what the data add."""

    def of(tau):
        return variational(switch, (y,), guide=guides.AutoDelta, tau=tau)

    controls = [{"a_unconstrained": torch.tensor(0.7)}]
    costs = {tau: float(mfoc.evaluate(of(tau).problem, controls, of(tau).population(0))[0]) for tau in (0.5, 1.5)}
    a = torch.tensor(0.7)
    prior = torch.logaddexp(
        math.log(0.3) + dist.Normal(1.0, 1.0).log_prob(a), math.log(0.7) + dist.Normal(-1.0, 1.0).log_prob(a)
    )
    assert costs[1.5] - costs[0.5] == pytest.approx(-float(prior), rel=1e-12)
    likelihood = dist.Normal(a, 1.0).log_prob(y).mean()
    assert costs[0.5] == pytest.approx(-float(likelihood + 0.5 * prior), rel=1e-12)


def test_minibatches_are_unbiased(y):
    whole, parts = (variational(mixture, (y,), samples=2, batch_size=size) for size in (None, 2))
    eps, controls = whole.population(0).state, whole.problem.controls
    full = mfoc.rollout(whole.problem, controls, whole.population(0)).cost
    clouds = [mfoc.Particles(eps, parts.population(k).data) for k in range(2)]
    torch.testing.assert_close(sum(mfoc.rollout(parts.problem, controls, c).cost for c in clouds) / 2, full)
    density = log_density(mixture, (y,), size=4)
    x, index = density.initial(3), torch.arange(4).view(2, 2)
    halves = [density.minibatch(x, rows.expand(3, 2)) for rows in index]
    torch.testing.assert_close(sum(halves) / 2, density(x))


@pytest.mark.parametrize("model", [mixture, chain], ids=["mixture", "chain"])
def test_conforms(model, y):
    check_formulation(variational(model, (y,), guide=guides.AutoDiagonalNormal, samples=2), adam(0.01))


def test_an_instance_that_hides_the_discrete_latents_is_taken(y):
    mine = guides.AutoNormal(poutine.block(mixture, hide=["z"]), init_scale=0.3)
    for guide in (mine, lambda model: guides.AutoNormal(model, init_scale=0.3)):
        f = variational(mixture, (y,), guide=guide)
        made = f.readout(f.problem)
        assert float(made.scales.s.detach()) == pytest.approx(0.3)
        again = variational(mixture, (y,), guide=made)
        torch.testing.assert_close(again.problem.controls, f.problem.controls)
    mine(y)
    variational(mixture, (y,), guide=mine)


@pytest.mark.slow
def test_a_mixture_is_found_and_predicted():
    centres = torch.tensor([-2.0, 2.0])
    y = centres[torch.arange(60) % 2] + 0.5 * normal(60, seed=1)
    start = guides.init_to_value(values={"m": torch.tensor([-1.0, 1.0])})
    f = variational(mixture, (y,), guide=lambda model: guides.AutoNormal(model, init_loc_fn=start), samples=8)
    made = f.readout(f.solve(adam(0.05, 0.99), steps=300))
    median = made.median()
    torch.testing.assert_close(median["m"], centres, rtol=0, atol=0.25)
    torch.testing.assert_close(median["w"], torch.full((2,), 0.5), rtol=0, atol=0.1)
    prediction = predict(made, {"y": None, "n": 3}, samples=400)
    # Of a half in each component: the variance is that of the centres and of what is within.
    torch.testing.assert_close(prediction.mean, torch.zeros(3), rtol=0, atol=0.5)
    torch.testing.assert_close(prediction.total, torch.full((3,), 4.25), rtol=0, atol=0.8)


def test_samplers_take_such_densities(y):
    made = svgd(log_density(mixture, (y,), traced=False), step=0.01, particles=3, init="prior", steps=2)
    assert mfoc.rollout(made.problem, made.problem.controls, made.population(0)).cost.isfinite().all()


def test_nothing_of_pyro_or_torch_is_left_changed(y):
    state, store = torch.get_rng_state(), dict(pyro.get_param_store().items())
    f = variational(mixture, (y,), samples=2)
    f.readout(f.solve(adam(0.01), steps=1))
    assert torch.equal(state, torch.get_rng_state())
    assert dict(pyro.get_param_store().items()) == store
    assert pyro.infer.util.is_validation_enabled()
    assert dist.is_validation_enabled()


def counting(y):
    k = pyro.sample("k", dist.Poisson(2.0))
    pyro.sample("a", dist.Normal(k, 1.0))


def sequential(y):
    k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "sequential"})
    pyro.sample("y", dist.Normal(k + pyro.sample("a", dist.Normal(0.0, 1.0)), 1.0).expand([4]).to_event(1), obs=y)


@enumerated
def only_discrete(y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(pyro.sample("k", dist.Bernoulli(0.5)), 1.0), obs=y)


@enumerated
def unplated(y):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(k + pyro.sample("a", dist.Normal(0.0, 1.0)), torch.ones(4)), obs=y)


@enumerated
def scales(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.0):
        k = pyro.sample("k", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a + k, 1.0), obs=y)


@enumerated
def sampled(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={**PARALLEL, "num_samples": 3})
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(a + k, 1.0).expand([4]).to_event(1), obs=y)


@pytest.mark.parametrize("door", [variational, log_density])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (counting, "cannot be listed"),
        (sequential, "config_enumerate"),
        (only_discrete, r"no latent variable but \['k'\]"),
        (unplated, "cannot be summed out"),
        (scales, "cannot be summed out.*scale"),
        (sampled, "'a'.*leave the mark out"),
    ],
)
def test_models_that_cannot_be_summed_are_refused(door, model, words, y):
    with pytest.raises(mfoc.InvalidValue, match=words):
        door(model, (y,))


def test_a_batch_of_what_all_observations_share_is_refused(y):
    with pytest.raises(mfoc.InvalidValue, match="'z' is one for all observations"):
        variational(switch, (y,), batch_size=2)
    with pytest.raises(mfoc.InvalidValue, match="'z' is one for all observations"):
        log_density(switch, (y,), size=4)


def test_the_curvature_of_pyro_does_not_sum_so_laplace_is_refused(y):
    with pytest.raises(mfoc.InvalidValue, match="AutoDelta for the point"):
        variational(mixture, (y,), guide=guides.AutoLaplaceApproximation)


def test_the_einsum_of_logs():
    a, b = normal(2, 3), normal(3, 4, seed=1)
    a[0, 0] = a[1] = b[2, 1] = -torch.inf
    expected = (a[:, :, None] + b[None]).logsumexp(1)
    torch.testing.assert_close(einsum("xy,yz->zx", a, b), expected.mT)
    torch.testing.assert_close(tensordot(a, b, ([1], [0])), expected)
    torch.testing.assert_close(tensordot(a, b, 1), expected)
    far = torch.tensor([-2000.0, -2001.0])
    torch.testing.assert_close(einsum("a->", far), far.logsumexp(0))


def test_the_einsum_of_logs_is_differentiated_twice_where_entries_are_zero():
    a = normal(3)
    b = torch.tensor([0.3, -torch.inf, 0.1])
    assert torch.autograd.gradcheck(lambda x: einsum("a,a->", x, b), a.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: einsum("a,a->", x, b), a)
    nothing = torch.autograd.grad(einsum("a,a->", a, torch.full((3,), -torch.inf)), a)[0]
    assert torch.equal(nothing, torch.zeros(3))

"""Variational inference on networks: against Pyro on the same noise, exact posteriors, and sums written out."""

import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.testing import check_formulation
from paradigms.bayesian import variational
from tests.oracles import bayesian as oracles
from tests.problems import D, normal, seeded

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))
ESTIMATORS = ("weights", "local", "flipout")


def net(inputs=3, hidden=5, outputs=2):
    return seeded(lambda: nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)))


def regression(n=11, inputs=3, outputs=2):
    return normal(n, inputs, seed=1), normal(n, outputs, seed=2)


def conv_net():
    return seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)))


def pyro_net(x, weights):
    """The same network by hand: weights {name: draw}."""
    h = torch.tanh(F.linear(x, weights["0.weight"], weights["0.bias"]))
    return F.linear(h, weights["2.weight"], weights["2.bias"])


class Fixed(dist.Normal):
    """A normal whose draw is loc + scale * given noise."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.given = noise

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.given


def pyro_loss(elbo, controls, cloud, draw, x, y, likelihood, prior):
    """Pyro's loss for one draw of a hand-written model and mean-field guide, on the noise of that particle."""
    shapes = {0: (5, 3), 2: (2, 5)}

    def sites():
        for t, (rows, _) in shapes.items():
            u, noise = controls[t], cloud.data["noise"][t]["weights"][draw]
            law = [v.view(rows, -1) for v in (u["loc"], F.softplus(u["scale"]), noise)]  # each row ends with its bias
            yield f"{t}.weight", *(v[:, :-1] for v in law)
            yield f"{t}.bias", *(v[:, -1] for v in law)

    def guide(x, y):
        for name, loc, scale, noise in sites():
            pyro.sample(name, Fixed(loc, scale, noise).to_event(loc.dim()))

    def model(x, y):
        w = {name: pyro.sample(name, prior.expand(loc.shape).to_event(loc.dim())) for name, loc, *_ in sites()}
        out = pyro_net(x, w)
        with pyro.plate("data", len(x)):
            if likelihood == "categorical":
                pyro.sample("y", dist.Categorical(logits=out), obs=y)
            else:
                sigma = F.softplus(controls[3]["noise"]) if len(controls) > 3 else 0.7
                pyro.sample("y", dist.Normal(out, sigma).to_event(1), obs=y)

    return elbo.differentiable_loss(model, guide, x, y)


@pytest.mark.parametrize("kl", ["exact", "sampled"])
@pytest.mark.parametrize("likelihood", ["known", "learned", "categorical"])
def test_the_objective_and_its_gradient_are_those_of_pyro_on_the_same_noise(kl, likelihood):
    x, y = regression()
    if likelihood == "categorical":
        y = torch.arange(len(x)) % 2
    named = {"likelihood": "categorical"} if likelihood == "categorical" else {"likelihood": "gaussian"}
    prior = dist.Normal(torch.tensor(0.1, dtype=D), torch.tensor(1.3, dtype=D))
    f = variational(net(), (x, y), **named, noise=0.7 if likelihood == "known" else None, prior=prior, samples=3, kl=kl)
    cloud = f.population(4)
    value, gradient = mfoc.evaluate(f.problem, f.problem.controls, cloud)
    free = mfoc.tree.map(lambda leaf: leaf.clone().requires_grad_(), f.problem.controls)
    elbo = pyro.infer.TraceMeanField_ELBO() if kl == "exact" else pyro.infer.Trace_ELBO()
    loss = sum(pyro_loss(elbo, free, cloud, s, x, y, likelihood, prior) for s in range(3)) / (3 * len(x))
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-12)
    leaves = mfoc.tree.leaves(free)
    for mine, theirs in zip(mfoc.tree.leaves(gradient), torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("noise", [None, 0.5])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_conforms(estimator, noise, batch_size):
    f = variational(
        net(),
        regression(),
        likelihood="gaussian",
        noise=noise,
        samples=4,
        estimator=estimator,
        batch_size=batch_size,
    )
    check_formulation(f, ADAM)


@pytest.mark.parametrize("estimator", ["weights", "flipout"])
def test_convolutions_conform(estimator):
    f = variational(
        conv_net(),
        (normal(6, 2, 5, 5), torch.arange(6) % 4),
        likelihood="categorical",
        samples=3,
        estimator=estimator,
    )
    check_formulation(f, ADAM)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_estimators_are_unbiased_and_less_noisy(estimator):
    x, y = regression(20)
    made = [
        variational(net(), (x, y), likelihood="gaussian", noise=0.5, samples=s, estimator=e, init_scale=0.3)
        for e, s in (("weights", 20_000), (estimator, 20_000))
    ]
    costs = [mfoc.rollout(f.problem, f.problem.controls, f.population(0)).cost for f in made]
    error = math.sqrt(sum(float(c.var()) / len(c) for c in costs))
    assert abs(float(costs[0].mean() - costs[1].mean())) < 4 * error
    assert costs[1].var() < 0.5 * costs[0].var()


@pytest.mark.parametrize(
    "prior",
    [
        None,
        dist.Normal(0.3, 2.0),
        dist.Normal(0.3, 2.0).expand([3]).to_event(1),
        dist.Laplace(0.1, 1.5),
        lambda name, w: dist.Normal(0.0, 1 / math.sqrt(w.shape[-1])),
    ],
)
def test_the_kl_is_that_of_torch_distributions(prior):
    layer = seeded(lambda: nn.Linear(3, 3))
    f = variational(nn.Sequential(layer), regression(outputs=3), likelihood="gaussian", noise=1.0, prior=prior, tau=0.3)
    u = {**f.problem.controls[0], "scale": f.problem.controls[0]["scale"] + 0.2 * normal(12, seed=9)}
    cost = f.problem.running_cost(0, f.population(0).state, u, f.population(0).data)
    named = {"0.weight": layer.weight, "0.bias": layer.bias}
    scale = F.softplus(u["scale"]).view(3, 4)
    total = 0
    for (name, w), s in zip(named.items(), (scale[:, :-1], scale[:, -1]), strict=True):
        p = prior or torch.distributions.Normal(0.0, 1.0)
        p = p if isinstance(p, torch.distributions.Distribution) else p(name, w)
        p = getattr(p, "base_dist", p)
        q = torch.distributions.Normal(w.detach(), s)
        total += torch.distributions.kl_divergence(q, type(p)(*[v.double() for v in (p.loc, p.scale)])).sum()
    torch.testing.assert_close(cost, 0.3 * total.expand(1), rtol=1e-6, atol=0)


def test_a_prior_without_closed_form_is_sampled():
    prior = dist.StudentT(torch.tensor(3.0, dtype=D), 0.0, 1.0)
    f = variational(net(), regression(), likelihood="gaussian", noise=1.0, prior=prior, samples=4)
    cloud, u = f.population(0), f.problem.controls[0]
    scale = F.softplus(u["scale"])
    w = u["loc"] + scale * cloud.data["noise"][0]["weights"]
    expected = (torch.distributions.Normal(u["loc"], scale).log_prob(w) - prior.log_prob(w)).sum(1) / 11
    torch.testing.assert_close(f.problem.running_cost(0, cloud.state, u, cloud.data), expected)


def test_minibatches_are_unbiased():
    """Over one epoch of equal batches with the noise held, the costs average to that of all the data."""
    x, y = regression(12)
    whole = variational(net(), (x, y), likelihood="gaussian", noise=0.5, samples=2)
    parts = variational(net(), (x, y), likelihood="gaussian", noise=0.5, samples=2, batch_size=4)
    noise = whole.population(0).data["noise"]
    full = mfoc.rollout(whole.problem, whole.problem.controls, whole.population(0)).cost
    clouds = [parts.population(k) for k in range(3)]
    held = [mfoc.Particles(c.state, {**c.data, "noise": noise}) for c in clouds]
    mean = sum(mfoc.rollout(parts.problem, parts.problem.controls, c).cost for c in held) / 3
    torch.testing.assert_close(mean, full)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_linear_regression_finds_the_mean_field_optimum(estimator):
    """The best factorised Gaussian has the posterior's mean, and 1 / diag(precision) for variances."""
    x = normal(30, 2, seed=1) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=D)
    y = x @ torch.tensor([[1.0], [-0.5]], dtype=D) + 0.4 + 0.5 * normal(30, 1, seed=2)
    mean, precision = oracles.linear_posterior(oracles.with_offset(x), y[:, 0], 0.5)
    f = variational(
        nn.Sequential(nn.Linear(2, 1).double()), (x, y), likelihood="gaussian", noise=0.5, samples=256,
        estimator=estimator,
    )  # fmt: skip
    solver = mfoc.Gradient(partial(torch.optim.Adam, lr=5e-2), lr_schedule=lambda k: 0.994**k)
    p = f.readout(f.solve(solver, steps=1200))
    found = torch.cat([p.mean["0.weight"][0], p.mean["0.bias"]])
    spread = torch.cat([p.scale["0.weight"][0], p.scale["0.bias"]])
    torch.testing.assert_close(found, mean, rtol=0, atol=4e-3)
    torch.testing.assert_close(spread, precision.diagonal().rsqrt(), rtol=0.02, atol=0)


def test_learned_noise_nears_the_residuals():
    x = normal(400, 1, seed=1)
    y = 2 * x + 0.3 * normal(400, 1, seed=2)
    f = variational(nn.Sequential(nn.Linear(1, 1).double()), (x, y), likelihood="gaussian", samples=16)
    p = f.readout(f.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=5e-2)), steps=400))
    assert float(p.observation_noise) == pytest.approx(0.3 * float(normal(400, 1, seed=2).std()), rel=0.05)
    assert float(p.mean["0.weight"]) == pytest.approx(2, abs=0.06)


def test_a_likelihood_given_as_a_function():
    x, y = regression()
    poisson = lambda out, y: F.poisson_nll_loss(out, y.abs().round(), reduction="none", full=True).sum(1)  # noqa: E731
    f = variational(net(), (x, y), likelihood=poisson, samples=2)
    check_formulation(f, ADAM)
    cloud = f.population(0)
    states = mfoc.rollout(f.problem, f.problem.controls, cloud).states
    expected = torch.stack([poisson(states[-1][s], y).mean() for s in range(2)])
    torch.testing.assert_close(f.problem.terminal_cost(states[-1], cloud.data), expected)


def test_another_solver_and_the_certificate_take_it():
    f = variational(net(), regression(), likelihood="gaussian", noise=0.5, samples=6)
    assert f.solve(mfoc.EMSA(rho=10.0), steps=3).value < 0.98 * f.solve(ADAM, steps=0).value
    assert len(mfoc.certify(f.problem, f.problem.controls, f.population(0)).stages) == 2


def test_stages_of_any_module_and_single_precision():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.relu(self.norm(self.first(x))))

    x, y = (part.float() for part in regression())
    f = variational(Net(), (x, y), likelihood="gaussian", stages=["first", "norm", "last"], samples=2)
    check_formulation(f, ADAM)
    p = f.readout(f.solve(ADAM, steps=2))
    assert set(p.mean) == {n for n, _ in Net().named_parameters()}
    drawn = p.weights(3, seed=1)
    single = torch.func.functional_call(p.at_mean(), {k: v[2] for k, v in drawn.items()}, (x,))
    torch.testing.assert_close(p.outputs(x, 3, seed=1)[0][2], single)


def refusal(*args, error=mfoc.InvalidValue, **kwargs):
    """What ``variational`` says when it refuses."""
    with pytest.raises(error) as caught:
        variational(*args, **kwargs)
    return str(caught.value)


def test_networks_that_do_not_fit_are_refused():
    x, y = regression(20)
    assert "N is missing" in refusal(net(), lambda n: mfoc.Particles(x, y), likelihood="gaussian")
    assert "likelihood is missing" in refusal(net(), (x, y))
    assert "expected 'gaussian'" in refusal(net(), (x, y), likelihood="normal")
    assert "must agree" in refusal(net(), (x, y[:, :1]), likelihood="gaussian")
    assert "integer labels" in refusal(net(), (x, y), likelihood="categorical", error=mfoc.InvalidType)
    assert "2 classes" in refusal(net(), (x, torch.arange(20)), likelihood="categorical")
    assert "inputs only" in refusal(net(), x, likelihood="gaussian")
    assert "positive finite" in refusal(net(), (x, y), likelihood="gaussian", noise=-1.0)
    assert "only a Gaussian" in refusal(net(), (x, torch.arange(20) % 2), likelihood="categorical", noise=1.0)
    assert "real numbers" in refusal(net(), (x, y), likelihood="gaussian", prior=dist.Gamma(1.0, 1.0))
    assert "expected a distribution" in refusal(net(), (x, y), likelihood="gaussian", prior=3, error=mfoc.InvalidType)
    assert "the parameter has" in refusal(net(), (x, y), likelihood="gaussian", prior=dist.Normal(torch.zeros(9), 1.0))
    assert "draws no weights" in refusal(
        net(), (x, y), likelihood="gaussian", prior=dist.StudentT(3.0), estimator="local"
    )
    assert "y holds NaN" in refusal(net(), (x, y * math.nan), likelihood="gaussian", noise=1.0)
    assert re.search("one cost|each observation", refusal(net(), (x, y), likelihood=lambda out, y: (out - y).square()))
    for name, value in {"samples": 0, "tau": 0.0, "size": -1, "estimator": "x", "kl": "x", "init_scale": 0}.items():
        assert f"{name} is" in refusal(net(), (x, y), likelihood="gaussian", **{name: value})
    norm = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert "batch norm in training mode" in refusal(norm, (x, y), likelihood="gaussian")
    assert "random in training mode" in refusal(nn.Sequential(*net(), nn.Dropout(0.1)), (x, y), likelihood="gaussian")
    assert "expected a torch.nn.Module" in refusal(3, (x, y), likelihood="gaussian", error=mfoc.InvalidType)


def test_seeds_and_priors_out_of_range_are_refused():
    x = normal(6, 3).float()
    for seed, error in (
        ("a", mfoc.InvalidType),
        (-1, mfoc.InvalidValue),
        (1.5, mfoc.InvalidType),
        (True, mfoc.InvalidType),
    ):
        with pytest.raises(error, match="seed is"):
            variational(net(), regression(), likelihood="gaussian", seed=seed)
    prior = dist.Normal(0.0, float("nan"), validate_args=False)
    with pytest.raises(mfoc.InvalidValue, match="NaN or infinite"):
        variational(nn.Sequential(seeded(lambda: nn.Linear(3, 3)).float()), (x, x), likelihood="gaussian", prior=prior)

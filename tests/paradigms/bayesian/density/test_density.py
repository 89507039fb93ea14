"""Log densities from functions, Pyro models, networks and problems."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import Predictive
from pyro.infer.mcmc.util import initialize_model
from scipy import integrate, stats
from torch import nn

import mfoc
from paradigms.bayesian import LogDensity, as_model, log_density, to_potential
from paradigms.bayesian.density.traced import Traced
from tests.problems import D, normal, seeded

X, W = normal(40, 3, seed=1), torch.tensor([1.0, -0.5, 0.3], dtype=D)
Y = X @ W + 0.4 * normal(40, seed=2)
PRIOR = torch.distributions.Normal(torch.zeros((), dtype=D), torch.tensor(0.7, dtype=D))


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, dtype=D), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones((), dtype=D)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, scale), obs=y)


def small_net():
    return seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), 3)


def test_a_function_of_named_parameters():
    like = {"a": torch.zeros(2, dtype=D), "b": torch.zeros((), dtype=D)}
    density = log_density(lambda p: -p["a"].pow(4).sum(1) - p["b"].exp(), like=like)
    x = normal(5, 3)
    torch.testing.assert_close(density(x), -x[:, :2].pow(4).sum(1) - x[:, 2].exp())
    torch.testing.assert_close(density.score(x), torch.cat([-4 * x[:, :2].pow(3), -x[:, 2:].exp()], 1))
    assert torch.equal(density.ravel(density.named(x)), x)
    assert {k: tuple(v.shape) for k, v in density.named(x).items()} == {"a": (5, 2), "b": (5,)}


def test_scores_carry_a_graph_where_the_points_do():
    density = log_density(lambda x: -x.pow(4).sum(1), like=torch.zeros(2, dtype=D))
    x = normal(3, 2).requires_grad_()
    slope = torch.autograd.grad(density.score(x).sum(), x)[0]
    torch.testing.assert_close(slope, -12 * x.detach().square())
    assert not density.score(x.detach()).requires_grad


def test_scores_carry_no_graph_of_the_data():
    density = log_density(regression, (X.clone().requires_grad_(), Y))
    x = density.initial(2)
    value, score = density.value_and_score(x)
    assert not any(found.requires_grad for found in (value, score, density.score(x)))
    torch.testing.assert_close(density.score(x), log_density(regression, (X, Y)).score(x))


@pytest.mark.parametrize("traced", [True, False])
def test_a_pyro_model_has_the_density_and_slope_that_pyro_gives_it(traced):
    density = log_density(regression, (X, Y), traced=traced)
    _, potential, _, _ = initialize_model(regression, (X, Y))
    x = density.initial(4, seed=5)
    value, score = density.value_and_score(x)
    for i, row in enumerate(x):
        free = row.clone().requires_grad_()
        theirs = potential({"w": free[:3], "scale": free[3]})
        torch.testing.assert_close(value[i], -theirs.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(score[i], -torch.autograd.grad(theirs, free)[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(density(x), value)
    torch.testing.assert_close(density.score(x), score)
    free = x.clone().requires_grad_()
    torch.testing.assert_close(density.score(free).detach(), score)
    torch.testing.assert_close(density.named(x)["scale"], x[:, 3].exp())


def test_second_derivatives_of_a_recorded_model_are_right():
    density, plain = (log_density(regression, (X, Y), traced=traced) for traced in (True, False))
    x = density.initial(3)

    def curvature(density):
        free = x.clone().requires_grad_()
        return torch.autograd.grad(density.score(free).square().sum(), free)[0]

    torch.testing.assert_close(curvature(density), curvature(plain), rtol=1e-11, atol=1e-9)
    step = 1e-6 * normal(3, 4, seed=9)
    change = (density.score(x + step).square() - density.score(x - step).square()).sum() / 2
    assert float((curvature(density) * step).sum() / change) == pytest.approx(1, abs=1e-5)


def test_a_support_that_depends_on_another_latent():
    def model():
        top = pyro.sample("top", dist.Gamma(torch.tensor(3.0, dtype=D), 1.0))
        pyro.sample("below", dist.Uniform(torch.zeros((), dtype=D), top))

    density = log_density(model, ())
    x = density.initial(6)
    named = density.named(x)
    part = torch.sigmoid(x[:, 1])
    torch.testing.assert_close(named["below"], named["top"] * part)
    gamma = torch.as_tensor(stats.gamma(3).logpdf(named["top"]))
    expected = gamma + x[:, 0] - named["top"].log() + named["top"].log() + (part * (1 - part)).log()
    torch.testing.assert_close(density(x), expected)


def test_the_integral_of_a_pyro_model_is_its_evidence():
    """Beta-Bernoulli: the evidence and the posterior are known."""
    heads = torch.tensor([1.0, 1, 0, 1, 1, 0, 1], dtype=D)

    def model(data):
        p = pyro.sample("p", dist.Beta(torch.tensor(2.0, dtype=D), 3.0))
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Bernoulli(p), obs=data)

    density = log_density(model, (heads,))
    grid = torch.linspace(-18, 18, 4001, dtype=D)[:, None]
    weight = density(grid).exp()
    from scipy.special import beta

    evidence = integrate.simpson(weight, x=grid[:, 0])
    assert evidence == pytest.approx(beta(7, 5) / beta(2, 3), rel=1e-8)
    mean = integrate.simpson(weight * density.named(grid)["p"], x=grid[:, 0]) / evidence
    assert mean == pytest.approx(7 / 12, rel=1e-8)


def test_flags_of_validation_are_restored():
    kept = torch.distributions.Distribution._validate_args
    try:
        for flag in (True, False):
            pyro.enable_validation(flag)
            density = log_density(regression, (X, Y))
            density.value_and_score(density.initial(3))
            assert torch.distributions.Distribution._validate_args is flag
            assert pyro.infer.util.is_validation_enabled() is flag
            assert pyro.poutine.util.is_validation_enabled() is flag
    finally:
        pyro.enable_validation(kept)


def test_batches_of_a_pyro_model_are_unbiased():
    density = log_density(regression, (X, Y), size=len(X))
    x = density.initial(2)
    singles = [density.value_and_score(x, torch.full((2, 1), i)) for i in range(len(X))]
    value, score = density.value_and_score(x)
    torch.testing.assert_close(torch.stack([v for v, _ in singles]).mean(0), value)
    torch.testing.assert_close(torch.stack([s for _, s in singles]).mean(0), score)


def test_a_network_has_the_density_written_out():
    net = small_net()
    density = log_density(net, (X, Y), likelihood="gaussian", noise=0.3, prior=PRIOR)
    x = density.initial(3)
    for i, row in enumerate(x):
        named = density.unravel(row)
        hidden = np.tanh(X.numpy() @ named["0.weight"].numpy().T + named["0.bias"].numpy())
        out = hidden @ named["2.weight"].numpy()[0] + named["2.bias"].numpy()[0]
        expected = stats.norm(out, 0.3).logpdf(Y.numpy()).sum() + stats.norm(0, 0.7).logpdf(row.numpy()).sum()
        assert float(density(x)[i]) == pytest.approx(expected, rel=1e-12)
    singles = torch.stack([density.value_and_score(x, torch.full((3, 1), i))[0] for i in range(len(X))])
    torch.testing.assert_close(singles.mean(0), density(x))


def test_particles_are_networks_drawn_from_the_prior():
    density = log_density(small_net(), (X, Y), likelihood="gaussian", noise=0.3, prior=PRIOR)
    x = density.initial(400, seed=1)
    assert float(x.std()) == pytest.approx(0.7, rel=0.05)
    assert torch.equal(x, density.initial(400, seed=1))


@pytest.mark.parametrize("likelihood", ["gaussian", "learned", "categorical"])
def test_a_network_as_a_pyro_model_and_back(likelihood):
    net, y, noise = small_net(), Y, {"gaussian": 0.3}.get(likelihood)
    if likelihood == "categorical":
        net, y = seeded(lambda: nn.Linear(3, 3), 1), torch.arange(40) % 3
    kind = likelihood.replace("learned", "gaussian")
    density = log_density(net, (X, y), likelihood=kind, noise=noise, prior=PRIOR)
    model = as_model(net, likelihood=kind, noise=noise, prior=PRIOR)
    back = log_density(model, (X, y))
    assert list(back.shapes) == list(density.shapes)
    x = density.initial(4)
    # A learned scale has a prior in its logarithm: LogNormal in the model, with the Jacobian, is normal there.
    torch.testing.assert_close(back(x.double()), density(x), rtol=1e-6, atol=1e-6)
    drawn = Predictive(model, posterior_samples=density.named(x))(X[:7])
    assert drawn["y"].shape[-1] == 7


def test_the_gibbs_law_of_a_problem():
    net = small_net()
    problem = mfoc.from_module(net, nn.MSELoss())
    density = log_density(problem, mfoc.Particles(X, Y[:, None]), temperature=0.5, prior=PRIOR)
    x = density.initial(2)
    for i in range(2):
        solved = mfoc.to_module(net, _controls(density, x[i], problem))
        expected = -F.mse_loss(solved(X)[:, 0], Y, reduction="sum") / 0.5 + PRIOR.log_prob(x[i]).sum()
        torch.testing.assert_close(density(x)[i], expected.detach())


def _controls(density, row, problem):
    named = iter(density.unravel(row).values())
    return [{key: next(named) for key in stage} for stage in problem.controls]


def test_particles_are_posterior_samples_of_a_pyro_model():
    density = log_density(regression, (X, Y))
    x = density.initial(6)
    drawn = Predictive(regression, posterior_samples=density.named(x))(X[:5])
    assert drawn["y"].shape == (6, 5)


def discrete():
    pyro.sample("k", dist.Bernoulli(0.5))


def growing(x):
    with pyro.plate("data", len(x)):
        pyro.sample("local", dist.Normal(x[:, 0], 1.0))


def subsampling(x):
    w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=D), 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(w, 1.0), obs=x[index, 0])


def infinite(x):
    return torch.where(x[:, 0] > 5, x.sum(1), torch.full_like(x[:, 0], -math.inf))


LIKE = torch.zeros(2, dtype=D)
NET = small_net()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: log_density(3), mfoc.InvalidType, "expected a function"),
        (lambda: log_density(regression), mfoc.InvalidValue, "say what the function is"),
        (lambda: log_density(lambda x: x.sum(), like=LIKE), mfoc.InvalidValue, r"one number per particle, \(2,\)"),
        (lambda: log_density(lambda x: x.sum(1) * math.nan, like=LIKE), mfoc.InvalidValue, "not finite at 2 of 2"),
        (lambda: log_density(infinite, like=LIKE), mfoc.InvalidValue, "-inf"),
        (lambda: log_density(lambda x: x, like=[1.0]), mfoc.InvalidType, "like is a list"),
        (lambda: log_density(lambda x: x, like=LIKE[None]), mfoc.InvalidValue, "expected one particle"),
        (lambda: log_density(lambda x: x.sum(1), like=LIKE, size=3), mfoc.InvalidValue, "go together"),
        (lambda: log_density(lambda x: x.sum(1), like=LIKE, noise=1.0), mfoc.InvalidValue, "noise cannot be used"),
        (lambda: log_density(discrete, ()), mfoc.InvalidValue, "'k' is discrete"),
        (lambda: log_density(growing, (X,), size=40), mfoc.InvalidValue, "one entry for each observation"),
        (lambda: log_density(subsampling, (X,)), mfoc.InvalidValue, "draws a subsample"),
        (lambda: log_density(regression, (X, Y[:3])), mfoc.InvalidValue, "cannot be run"),
        (lambda: log_density(regression, (X, Y), size=40.0), mfoc.InvalidType, "size is 40.0"),
        (lambda: log_density(regression, (X, Y), size=0), mfoc.InvalidValue, "size is 0"),
        (lambda: log_density(regression, (X, Y), size=7), mfoc.InvalidValue, "as many rows"),
        (lambda: log_density(lambda: None, ()), mfoc.InvalidValue, "no latent"),
        (lambda: log_density(NET, (X, Y[:3]), likelihood="gaussian"), mfoc.InvalidValue, "40 inputs and 3"),
        (lambda: log_density(NET, X, likelihood="gaussian"), mfoc.InvalidType, "a pair of tensors"),
        (lambda: log_density(NET, (X, Y), likelihood="poisson"), mfoc.InvalidValue, "'poisson'"),
        (lambda: log_density(NET, (X, Y), likelihood="gaussian", noise=-1.0), mfoc.InvalidValue, "noise.*positive"),
        (lambda: log_density(NET, (X, Y), likelihood="categorical"), mfoc.InvalidType, "integer labels"),
        (lambda: log_density(NET, (X, Y), likelihood="gaussian", prior=1.0), mfoc.InvalidType, "Normal"),
        (
            lambda: log_density(NET, (X, Y), likelihood="gaussian", prior=dist.HalfNormal(1.0)),
            mfoc.InvalidValue,
            "real numbers, one for each weight",
        ),
        (lambda: log_density(mfoc.from_module(NET, nn.MSELoss()), X), mfoc.InvalidType, "mfoc.Particles"),
        (lambda: log_density(lambda x: x.sum(1), like=LIKE)(X), mfoc.InvalidValue, r"\(n, 2\)"),
        (lambda: log_density(lambda x: x.sum(1), like=LIKE)([0.0]), mfoc.InvalidType, "x is a list; expected points"),
        (lambda: log_density(regression, (X, Y), traced="no"), mfoc.InvalidType, "traced is 'no'"),
        (lambda: log_density(NET, (X, Y)), mfoc.InvalidValue, "a network needs likelihood="),
        (lambda: log_density(NET, (X, Y), likelihood=3.0), mfoc.InvalidType, "likelihood is a float"),
        (lambda: to_potential(lambda x: x.sum(1), like=LIKE, seed="a"), mfoc.InvalidType, "seed is 'a'"),
        (lambda: log_density(lambda x: x.sum(1), like=LIKE).score(LIKE[None], X), mfoc.InvalidValue, "no minibatch"),
        (lambda: log_density(lambda x: x.sum(1), like=LIKE).ravel({"y": X}), mfoc.InvalidValue, "named"),
        (lambda: to_potential(log_density(lambda x: x.sum(1), like=LIKE), chains=0), mfoc.InvalidValue, "chains"),
        (
            lambda: log_density(nn.Linear(3, 2).double(), (X, (torch.arange(40) % 3) - 100), likelihood="categorical"),
            mfoc.InvalidValue,
            "2 classes",
        ),
        (lambda: as_model(NET, likelihood="poisson"), mfoc.InvalidValue, "poisson"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_density_is_what_it_is():
    density = log_density(lambda x: -x.square().sum(1), like=LIKE)
    assert isinstance(density, LogDensity)
    assert log_density(density) is density
    assert density.dim == 2


@pytest.mark.parametrize("traced", [True, False])
def test_networks_are_never_recorded_and_pyro_models_unless_told(traced):
    net = log_density(NET, (X, Y), likelihood="gaussian", traced=traced)
    model = log_density(regression, (X, Y), traced=traced)
    assert not isinstance(net.function, Traced)
    assert isinstance(model.function, Traced) is traced

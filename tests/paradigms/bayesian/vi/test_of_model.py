"""Variational inference on Pyro models, the way back into Pyro, and what is refused."""

import math
import re
from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from mfoc.testing import check_formulation
from paradigms.bayesian import variational
from tests.oracles import bayesian as oracles
from tests.problems import normal

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
guides = pyro.infer.autoguide
GAUSSIAN = (
    guides.AutoNormal,
    guides.AutoDiagonalNormal,
    guides.AutoMultivariateNormal,
    guides.AutoLowRankMultivariateNormal,
)
POINTS = (guides.AutoDelta, guides.AutoLaplaceApproximation)
GUIDES = GAUSSIAN + POINTS


def adam(lr, decay=1.0):
    return mfoc.Gradient(partial(torch.optim.Adam, lr=lr), lr_schedule=lambda k: decay**k)


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def data():
    x = normal(20, 3, seed=1)
    return x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * normal(20, seed=2)


def model(x, y=None):
    """Latents on the line, the half-line and the simplex."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w + p[0], s), obs=y)


def linear(x, y=None):
    """Linear regression with known noise: conjugate."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


def on_noise(monkeypatch, eps, loss):
    """A loss of Pyro whose guide draws its normals from this vector."""
    left = [eps]

    def standard(shape, dtype, device):
        count = torch.Size(shape).numel()
        taken, left[0] = left[0][:count], left[0][count:]
        return taken.view(shape)

    laws = torch.distributions
    for module in (laws.normal, laws.multivariate_normal, laws.lowrank_multivariate_normal):
        monkeypatch.setattr(module, "_standard_normal", standard)
    value = loss()
    assert len(left[0]) == 0
    monkeypatch.undo()
    return value


# TraceMeanField_ELBO leaves out the volume of the map to a constrained latent (its KL of a Delta ignores the log
# density that AutoGuides put there), so it is right for latents on the line only.
@pytest.mark.parametrize(
    ("elbo", "model"),
    [(pyro.infer.Trace_ELBO, model), (pyro.infer.TraceMeanField_ELBO, linear)],
    ids=["trace", "mean field"],
)
@pytest.mark.parametrize("guide", GUIDES)
def test_the_objective_and_its_gradient_are_those_of_pyro_on_the_same_noise(guide, elbo, model, data, monkeypatch):
    f = variational(model, data, guide=guide, samples=4)
    solution = f.solve(adam(0.05), steps=20)
    made = f.readout(solution)
    assert type(made) is guide
    cloud = f.population(3)
    value, (gradient,) = mfoc.evaluate(f.problem, solution.controls, cloud)
    particle = elbo().differentiable_loss
    loss = sum(on_noise(monkeypatch, eps, lambda: particle(model, made, *data)) for eps in cloud.state) / (4 * 20)
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-12)
    names, own = zip(*made.named_parameters(), strict=True)
    for name, theirs in zip(names, torch.autograd.grad(loss, own), strict=True):
        torch.testing.assert_close(gradient[name], theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("guide", GUIDES)
def test_conforms(guide, batch_size, data):
    f = variational(model, data, guide=guide, samples=3, batch_size=batch_size)
    check_formulation(f, adam(0.01))
    start, solved = f.readout(f.problem), f.readout(f.solve(adam(0.01), steps=2))
    assert type(start) is type(solved) is guide
    pairs = zip(start.parameters(), solved.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)


def test_tau_weighs_the_divergence_alone(data):
    """J(tau) = E[- log likelihood / N] + tau KL: affine in tau, and -ELBO / N at 1 / N."""
    made = [variational(model, data, tau=tau, samples=2) for tau in (0.05, 0.1, 0.3)]
    cloud = made[0].population(0)
    a, b, c = (mfoc.rollout(f.problem, made[0].problem.controls, cloud).cost for f in made)
    torch.testing.assert_close((c - a) / 0.25, (b - a) / 0.05)


def test_minibatches_are_unbiased(data):
    whole = variational(model, data, samples=2)
    parts = variational(model, data, samples=2, batch_size=5)
    eps, controls = whole.population(0).state, whole.problem.controls
    full = mfoc.rollout(whole.problem, controls, whole.population(0)).cost
    clouds = [mfoc.Particles(eps, parts.population(k).data) for k in range(4)]
    torch.testing.assert_close(sum(mfoc.rollout(parts.problem, controls, c).cost for c in clouds) / 4, full)


@pytest.mark.parametrize("guide", GAUSSIAN)
def test_the_exact_entropy_has_the_mean_of_the_sampled_one(guide, data):
    made = [variational(model, data, samples=4000, kl=kl, guide=guide) for kl in ("exact", "sampled")]
    a, b = (mfoc.rollout(f.problem, f.problem.controls, f.population(0)).cost for f in made)
    assert abs(float((a - b).mean())) < 4 * float((a - b).std()) / math.sqrt(4000)
    assert float((a - b).std()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("guide", [guides.AutoNormal, guides.AutoMultivariateNormal])
def test_linear_regression_has_the_known_posterior(guide, data):
    x, y = data
    mean, precision = oracles.linear_posterior(x, y, 0.3)
    f = variational(linear, data, guide=guide, samples=64)
    made = f.readout(f.solve(adam(0.05, 0.993), steps=900))
    if guide is guides.AutoNormal:
        found, spread = made.locs.w, made.scales.w
        torch.testing.assert_close(spread, precision.diagonal().rsqrt(), rtol=0.02, atol=0)
    else:
        law = made.get_posterior()
        found = law.mean
        torch.testing.assert_close(law.covariance_matrix, torch.linalg.inv(precision), rtol=0.02, atol=1e-4)
    torch.testing.assert_close(found.detach(), mean, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_beta_bernoulli():
    """Posterior Beta(2 + 7, 3 + 3): a normal in the logit comes close to it in mean and spread."""

    def coin(y):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with pyro.plate("tosses", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    y = torch.tensor([1.0] * 7 + [0.0] * 3)
    f = variational(coin, (y,), samples=64)
    solution = f.solve(adam(0.05, 0.98), steps=250)
    made, exact = f.readout(solution), torch.distributions.Beta(9.0, 6.0)
    quantiles = made.quantiles([(k + 0.5) / 4000 for k in range(4000)])["p"]
    assert float(quantiles.mean()) == pytest.approx(float(exact.mean), abs=5e-3)
    assert float(quantiles.std()) == pytest.approx(float(exact.stddev), rel=0.06)
    # -ELBO is above the exact negative log evidence, by little.
    evidence = oracles.log_beta(9, 6) - oracles.log_beta(2, 3)
    many = variational(coin, (y,), samples=20_000)
    gap = 10 * float(mfoc.rollout(many.problem, solution.controls, many.population(0)).cost.mean()) + evidence
    assert 0 < gap < 0.02


def test_the_guide_goes_on_in_svi_and_predictive(data):
    f = variational(model, data, guide=guides.AutoMultivariateNormal, samples=8)
    pyro.infer.SVI(model, guides.AutoMultivariateNormal(model), pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    stale = guides.AutoMultivariateNormal(model)
    stale(*data)  # its parameters now lie in the store under the class's name
    made = f.readout(f.solve(adam(0.05), steps=120))
    before = made.loc.detach().clone()
    with torch.no_grad():
        drawn = pyro.infer.Predictive(model, guide=made, num_samples=200)(data[0])
    torch.testing.assert_close(made.loc.detach(), before)
    assert drawn["y"].shape[0] == 200
    assert float(drawn["w"].mean(0).sub(torch.tensor([1.0, -2.0, 0.5])).abs().max()) < 0.3
    svi = pyro.infer.SVI(model, made, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    losses = [svi.step(*data) for _ in range(30)]
    assert sum(losses) / 30 == pytest.approx(20 * f.solve(adam(0.05), steps=120).value, abs=3)
    assert not torch.equal(made.loc.detach(), before)


def test_nothing_of_pyro_or_torch_is_left_changed(data):
    state, store = torch.get_rng_state(), dict(pyro.get_param_store().items())
    f = variational(model, data, samples=2)
    f.readout(f.solve(adam(0.01), steps=1))
    assert torch.equal(state, torch.get_rng_state())
    assert dict(pyro.get_param_store().items()) == store
    assert pyro.infer.util.is_validation_enabled()
    assert dist.is_validation_enabled()
    assert pyro.poutine.util.is_validation_enabled()


def test_a_guide_in_use_is_where_the_solve_starts(data):
    mine = guides.AutoNormal(model, init_scale=0.2)
    mine(*data)
    f = variational(model, data, guide=mine)
    for name, value in mine.named_parameters():
        assert torch.equal(f.problem.controls[0][name], value)


def refusal(*args, error=mfoc.InvalidValue, **kwargs):
    """What ``variational`` says when it refuses."""
    with pytest.raises(error) as caught:
        variational(*args, **kwargs)
    return str(caught.value)


def mixture(y):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(z, 1.0).expand([len(y)]).to_event(1), obs=y)


def with_parameter(y):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("y", dist.Normal(pyro.sample("w", dist.Normal(loc, 1.0)), 1.0).expand([len(y)]).to_event(1), obs=y)


def improper(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("bad", torch.log(-w.abs() - 1))


def improper_later(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(torch.where(w == 0, 0.0, torch.nan), 1.0, validate_args=False), obs=y)


def branching(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(w if w > 0 else -w, 1.0).expand([len(y)]).to_event(1), obs=y)


def local(y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def subsampling(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(w, 1.0), obs=y[index])


def test_models_that_do_not_fit_are_refused(data):
    y = data[1]
    assert "'z' is discrete" in refusal(mixture, (y,))
    assert "parameter 'loc'" in refusal(with_parameter, (y,))
    assert re.search("cannot be run .* nan", refusal(improper, (y,)))
    assert "log density is nan" in refusal(improper_later, (y,))
    assert "vectorised" in refusal(branching, (y,))
    assert "one entry for each observation" in refusal(local, (y,), batch_size=5)
    assert "draws a subsample" in refusal(subsampling, (y,))
    assert "no latent" in refusal(lambda y: pyro.sample("y", dist.Normal(y, 1.0).to_event(1), obs=y), (y,))
    assert "N is missing" in refusal(lambda: pyro.sample("w", dist.Normal(0.0, 1.0)), ())
    assert "N is missing" in refusal(lambda x, y: None, (data[0], y[:3]))
    assert "expected the tuple" in refusal(model, 3, error=mfoc.InvalidType)
    assert "leave it out" in refusal(model, data, likelihood="gaussian")
    assert "is for networks" in refusal(model, data, estimator="local")


def test_guides_that_do_not_match_are_refused(data):
    assert "does not cover" in refusal(model, data, guide=guides.AutoNormal(linear))
    assert "has also" in refusal(linear, data, guide=lambda m: guides.AutoNormal(model))
    assert "expected one of" in refusal(model, data, guide=guides.AutoIAFNormal, error=mfoc.InvalidType)
    assert "expected one of" in refusal(model, data, guide=3, error=mfoc.InvalidType)
    assert "mean-field" in refusal(nn.Linear(3, 1), data, likelihood="gaussian", guide=guides.AutoMultivariateNormal)
    f, g = variational(model, data), variational(linear, data)
    with pytest.raises(mfoc.InvalidValue, match="solved for it"):
        f.readout(mfoc.Iterate(0, g.problem.controls, {}))

"""Gradients of the ELBO without the score of log q: the same J, another estimator."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.testing import check_formulation
from paradigms.bayesian import variational
from tests.oracles import bayesian as oracles
from tests.problems import normal, seeded

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
guides = pyro.infer.autoguide
pytestmark = pytest.mark.usefixtures("double")
GUIDES = (
    guides.AutoNormal,
    guides.AutoDiagonalNormal,
    guides.AutoMultivariateNormal,
    guides.AutoLowRankMultivariateNormal,
)
X = normal(20, 3, seed=1)
NETWORK = {"model": nn.Linear(3, 1), "likelihood": "gaussian"}


@pytest.fixture
def data():
    return X, X @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * normal(20, seed=2)


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


@pytest.mark.parametrize("guide", GUIDES)
def test_j_is_the_same_and_the_gradient_is_that_without_the_score(guide, data):
    """By hand: the score of log q, summed over the draws, is what the two gradients differ by."""
    plain, path = (variational(linear, data, guide=guide, samples=3, stl=stl) for stl in (False, True))
    controls, cloud = plain.problem.controls, plain.population(2)
    (a, (full,)), (b, (held,)) = (mfoc.evaluate(f.problem, controls, cloud) for f in (plain, path))
    torch.testing.assert_close(a, b, rtol=1e-13, atol=0)
    made = plain.readout(plain.problem)
    own = dict(made.named_parameters())
    by_site = guide is guides.AutoNormal
    law = dist.Normal(made.locs.w, made.scales.w).to_event(1) if by_site else made.get_posterior()
    z = mfoc.rollout(plain.problem, controls, cloud).states[-1].detach()
    score = torch.autograd.grad(law.log_prob(z).mean() / 20, list(own.values()))
    for (name, _), each in zip(own.items(), score, strict=True):
        torch.testing.assert_close(full[name] - held[name], each, rtol=1e-9, atol=1e-12)


def test_at_the_posterior_the_gradient_has_no_variance(data):
    """Roeder et al. (2017), sec. 3: the gradient of each draw vanishes; with the score it does only in the mean."""
    mean, precision = oracles.linear_posterior(*data, 0.3)
    covariance = torch.linalg.inv(precision)
    triangle = torch.linalg.cholesky(covariance)
    made = guides.AutoMultivariateNormal(linear)
    made(*data)
    with torch.no_grad():
        made.loc.copy_(mean)
    made.scale, made.scale_tril = triangle.diagonal(), triangle / triangle.diagonal()[:, None]
    gradients = {}
    for stl in (False, True):
        f = variational(linear, data, guide=made, samples=1, stl=stl)
        slope = mfoc.evaluate(f.problem, f.problem.controls, f.population(0))[1][0]
        gradients[stl] = max(float(value.abs().max()) for value in slope.values())
    assert gradients[True] < 1e-12
    assert gradients[False] > 1e-3


@pytest.mark.parametrize("guide", GUIDES[2:])
def test_conforms(guide, data):
    f = variational(linear, data, guide=guide, samples=2, stl=True)
    check_formulation(f, mfoc.Gradient(partial(torch.optim.Adam, lr=0.01)))


@pytest.mark.slow
def test_it_is_certified_by_the_second_derivatives_of_j(data):
    """Those of the path are other numbers: what is held does not curve."""
    plain, path = (variational(linear, data, samples=3, stl=stl) for stl in (False, True))
    a, b = (f.certify(plain.problem.controls) for f in (plain, path))
    assert a.hessian.value == b.hessian.value
    assert mfoc.certify(path.problem, plain.problem.controls, path.population).hessian.value != a.hessian.value


def test_of_a_network_the_gradient_is_that_without_the_score():
    """By hand, for each way to draw and each prior: what is held is the law in log q, and nothing else."""
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    y = normal(20, 2, seed=3)
    for estimator in ("weights", "flipout"):
        for prior in (None, dist.StudentT(torch.tensor(4.0))):
            options = {"likelihood": "gaussian", "samples": 3, "estimator": estimator, "prior": prior}
            plain = variational(net, (X, y), kl="sampled", **options)
            path = variational(net, (X, y), stl=True, **options)
            controls, cloud = plain.problem.controls, plain.population(2)
            (a, full), (b, held) = (mfoc.evaluate(f.problem, controls, cloud) for f in (plain, path))
            torch.testing.assert_close(a, b, rtol=1e-13, atol=0)
            for u, noise, left, right in zip(controls, cloud.data["noise"], full, held, strict=False):
                if not u:
                    continue
                own = {name: value.clone().requires_grad_() for name, value in u.items()}
                law = dist.Normal(own["loc"], F.softplus(own["scale"]))
                draw = (law.loc + law.scale * noise["weights"]).detach()
                score = torch.autograd.grad(law.log_prob(draw).sum(1).mean() / 20, list(own.values()))
                for name, each in zip(own, score, strict=True):
                    torch.testing.assert_close(left[name] - right[name], each, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(full[-1], held[-1], rtol=1e-13, atol=0)  # the noise has no law


@pytest.mark.parametrize("estimator", ["weights", "flipout"])
def test_at_the_posterior_of_a_linear_network_the_gradient_vanishes(estimator):
    """Inputs that are orthogonal: the posterior is a product, and so among the laws of the weights.

    Flipout takes log q at another draw than the likelihood, and has it in the mean only.
    """
    x = torch.linalg.qr(X).Q * torch.tensor([1.0, 2.0, 3.0])
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * normal(20, seed=2)
    mean, precision = oracles.linear_posterior(x, y, 0.3)
    torch.testing.assert_close(precision, torch.diag(precision.diagonal()))
    rho = torch.log(torch.expm1(precision.diagonal().rsqrt()))
    sizes = {}
    for stl in (False, True):
        options = {"likelihood": "gaussian", "noise": 0.3, "kl": "sampled", "estimator": estimator, "stl": stl}
        f = variational(nn.Linear(3, 1, bias=False), (x, y), samples=1 if estimator == "weights" else 4000, **options)
        slope = mfoc.evaluate(f.problem, [{"loc": mean, "scale": rho}], f.population(0))[1][0]
        sizes[stl] = max(float(value.abs().max()) for value in slope.values())
    if estimator == "weights":
        assert sizes[True] < 1e-12
        assert sizes[False] > 1e-3
    else:
        assert sizes[True] < 0.1


@pytest.mark.slow
def test_a_network_conforms_and_is_certified_by_the_second_derivatives_of_j():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)))
    options = {"likelihood": "gaussian", "noise": 0.3, "samples": 2}
    path = variational(net, (X, normal(20, 1, seed=3)), stl=True, **options)
    plain = variational(net, (X, normal(20, 1, seed=3)), kl="sampled", **options)
    check_formulation(path, mfoc.Gradient(partial(torch.optim.Adam, lr=0.01)))
    a, b = (f.certify(plain.problem.controls) for f in (plain, path))
    assert a.hessian.value == b.hessian.value


def test_bad_input_is_refused_with_a_reason(data):
    for error, words, arguments in (
        (mfoc.InvalidValue, "kl='exact' samples none", {"model": linear, "kl": "exact", "stl": True}),
        (mfoc.InvalidValue, "'local' draws none: use", {**NETWORK, "estimator": "local", "stl": True}),
        (mfoc.InvalidValue, "kl='exact' samples none", {**NETWORK, "kl": "exact", "stl": True}),
        (mfoc.InvalidType, "stl is 1", {"model": linear, "stl": 1}),
    ):
        with pytest.raises(error, match=words):
            variational(data=data, **arguments)

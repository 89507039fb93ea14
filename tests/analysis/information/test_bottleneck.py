"""The variational bottleneck, solved as a control problem, against the Gaussian one in closed form."""

import math
from dataclasses import astuple
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.analysis.information import gaussian_bottleneck, information_bottleneck, with_noise
from mfoc.errors import InvalidType, InvalidValue
from mfoc.testing import check_problem
from tests.problems import D, labels, normal

LBFGS = mfoc.Gradient(
    partial(torch.optim.LBFGS, max_iter=20, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16)
)
SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


class GaussianDecoder(nn.Module):
    """A linear mean and a log variance that is the same for all t: ``[N, 2, m]``."""

    def __init__(self, latent, outputs):
        super().__init__()
        self.weight = nn.Parameter(0.5 * normal(outputs, latent, seed=8))
        self.log_variance = nn.Parameter(torch.zeros(outputs, dtype=D))

    def forward(self, t):
        return torch.stack([t @ self.weight.mT, self.log_variance.expand(len(t), -1)], 1)


def gaussian_nll(out, y):
    mean, log_variance = out.unbind(1)
    return ((y - mean).square() / log_variance.exp() + log_variance + math.log(2 * math.pi)).sum(1) / 2


def sigma_points(sigma_x, sigma_xy, sigma_y, latent):
    """A cloud whose mean and covariance of (x, y, noise) are exact: every cost here is quadratic in them."""
    d, m = sigma_xy.shape
    whole = torch.block_diag(torch.eye(d + m, dtype=D), torch.eye(latent, dtype=D))
    whole[:d, :d], whole[:d, d : d + m] = sigma_x, sigma_xy
    whole[d : d + m, :d], whole[d : d + m, d : d + m] = sigma_xy.mT, sigma_y
    root = math.sqrt(len(whole)) * torch.linalg.cholesky(whole).mT
    x, y, noise = torch.cat([root, -root]).split([d, m, latent], 1)
    return mfoc.Particles(x, {"y": y, "noise": noise})


def correlated(*correlations):
    """X in general position and Y white, with these canonical correlations."""
    count = len(correlations)
    mix = normal(count, count, seed=5) + torch.eye(count, dtype=D)
    return mix @ mix.mT, mix @ torch.diag(torch.tensor(correlations, dtype=D)), torch.eye(count, dtype=D)


def linear_encoder(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False, dtype=D)
    layer.weight.data = 0.3 * normal(outputs, inputs, seed=7)
    return nn.Sequential(layer)


def solved(parts, beta, *, noise=1.0, steps=40):
    """Rate and what is told of Y, at the optimum of the variational problem."""
    count = len(parts[0])
    encoder = linear_encoder(count, count if noise is not None else 2 * count)
    problem = information_bottleneck(
        encoder,
        nn.Sequential(GaussianDecoder(count, len(parts[2]))),
        gaussian_nll,
        beta=beta,
        latent=count,
        noise=noise,
        prior="learned",
    )
    cloud = sigma_points(*parts, count)
    solution = mfoc.solve(problem, LBFGS, cloud, steps=steps)
    rates = problem.rates(solution, cloud)
    entropy = float(torch.logdet(2 * math.pi * math.e * parts[2])) / 2
    return rates.rate, entropy - rates.distortion, problem, solution


@pytest.mark.parametrize("beta", [0.5, 0.2, 0.06])
def test_the_optimum_is_the_gaussian_bottleneck(beta):
    """Alemi's E loss + beta I(T;X) is Chechik's I(T;X) - I(T;Y) / beta, up to a factor and a constant."""
    parts = correlated(0.9, 0.6, 0.3)
    wanted = gaussian_bottleneck(*parts, 1 / beta)
    rate, told, problem, solution = solved(parts, beta)
    assert rate == pytest.approx(wanted.information_x, abs=2e-6)
    assert told == pytest.approx(wanted.information_y, abs=2e-6)
    projection = problem.modules(solution)[0][0].weight.detach()
    assert torch.linalg.matrix_rank(projection, atol=1e-2) == len(wanted.projection)
    scatter = projection.mT @ projection  # the same up to a rotation of t
    torch.testing.assert_close(scatter, wanted.projection.mT @ wanted.projection, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("factor", "kept"), [(0.97, 0), (1.03, 1)])
def test_below_the_critical_trade_off_nothing_gets_through(factor, kept):
    parts = correlated(0.8, 0.3)
    critical = float(gaussian_bottleneck(*parts, 1.0).critical_betas[0])
    wanted = gaussian_bottleneck(*parts, factor * critical)
    assert len(wanted.projection) == kept
    rate, told, *_ = solved(parts, 1 / (factor * critical), steps=60)
    assert (rate, told) == pytest.approx((wanted.information_x, wanted.information_y), abs=1e-5)
    assert (rate > 1e-3) == bool(kept)


def test_an_encoder_that_says_its_own_noise_does_as_well_and_no_better():
    """A single t ~ N(m x, s(x)^2) with bias: s is constant at the optimum, and scale is free."""
    parts = correlated(0.9)
    wanted = gaussian_bottleneck(*parts, 4.0)
    layer = nn.Linear(1, 2, dtype=D)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0], [0.0]], dtype=D), torch.zeros(2, dtype=D)
    decoder = nn.Sequential(GaussianDecoder(1, 1))
    problem = information_bottleneck(nn.Sequential(layer), decoder, gaussian_nll, beta=0.25, latent=1, prior="learned")
    cloud = sigma_points(*parts, 1)
    solution = mfoc.solve(problem, LBFGS, cloud, steps=40)
    rates = problem.rates(solution, cloud)
    least = math.log(2 * math.pi * math.e) / 2 - wanted.information_y + 0.25 * wanted.information_x
    assert rates.distortion + 0.25 * rates.rate == pytest.approx(least, abs=1e-6)
    assert rates.rate == pytest.approx(wanted.information_x, abs=1e-4)


def classifier(beta=0.1, **settings):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).to(D)
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).to(D)
    problem = information_bottleneck(encoder, decoder, F.cross_entropy, beta=beta, latent=2, **settings)
    return problem, encoder, decoder


DATA = (normal(12, 3), labels(12, 3))


@pytest.mark.parametrize("prior", ["normal", "learned"])
def test_it_keeps_the_laws_of_a_control_problem(prior):
    problem, *_ = classifier(prior=prior)
    assert problem.stages == 7
    assert repr(problem).startswith("InformationBottleneck(7 stages, a control of its own each: ")
    check_problem(problem, with_noise(DATA, 2)(0), interacting=False)


def test_the_costs_are_those_of_torch():
    """The divergence is torch's own, the rest the two networks run by hand."""
    problem, encoder, decoder = classifier()
    particles = with_noise(DATA, 2)(0)
    mean, raw = encoder(DATA[0]).chunk(2, 1)
    law = torch.distributions.Normal(mean, F.softplus(raw))
    unit = torch.distributions.Normal(torch.zeros(2, dtype=D), torch.ones(2, dtype=D))
    divergence = torch.distributions.kl_divergence(law, unit).sum(1)
    t = mean + F.softplus(raw) * particles.data["noise"]
    loss = F.cross_entropy(decoder(t), DATA[1], reduction="none")
    torch.testing.assert_close(mfoc.rollout(problem, problem, particles).cost, loss + 0.1 * divergence)
    rates = problem.rates(problem, particles)
    assert astuple(rates) == pytest.approx((divergence.mean().item(), loss.mean().item()))


@pytest.mark.parametrize("beta", [1e-12, 1e9])
def test_the_rate_does_not_depend_on_its_price(beta):
    """Even where the price makes it a share of the cost that is below rounding, or the distortion is."""
    cloud = with_noise(DATA, 2)(0)
    found = [problem.rates(problem, cloud) for problem in (classifier(1.0)[0], classifier(beta)[0])]
    assert astuple(found[0]) == astuple(found[1])


def test_encoder_and_decoder_that_share_a_parameter_are_refused():
    one = nn.Linear(2, 2)
    with pytest.raises(InvalidValue, match=r"decoder\.0\.weight.*encoder\.1\.weight"):
        information_bottleneck(
            nn.Sequential(nn.Linear(3, 2), one), nn.Sequential(one), F.cross_entropy, beta=0.1, latent=2, noise=1.0
        )


def test_a_learned_prior_is_the_normal_law_of_its_control():
    problem, encoder, _ = classifier(prior="learned")
    controls = [dict(u) for u in problem.controls]
    mean, log_variance = torch.tensor([0.3, -1.0], dtype=D), torch.tensor([0.5, -0.7], dtype=D)
    controls[problem.cut] = {"mean": mean, "log_variance": log_variance}
    found, raw = encoder(DATA[0]).chunk(2, 1)
    law = torch.distributions.Normal(found, F.softplus(raw))
    wanted = torch.distributions.kl_divergence(law, torch.distributions.Normal(mean, (log_variance / 2).exp()))
    assert problem.rates(controls, with_noise(DATA, 2)(0)).rate == pytest.approx(wanted.sum(1).mean().item())


@pytest.mark.parametrize("solver", [SGD, mfoc.MSA(inner=mfoc.minimisers.Descent(0.1))], ids=["Gradient", "MSA"])
def test_any_solver_solves_it(solver):
    problem, *_ = classifier()
    cloud = with_noise(DATA, 2)(0)
    solution = mfoc.solve(problem, solver, cloud, steps=20)
    before, after = (float(mfoc.rollout(problem, each, cloud).cost.mean()) for each in (problem, solution))
    assert after < before - 0.01


@pytest.mark.parametrize("raw", [-38.0, -42.0, -300.0])
def test_a_deviation_that_float32_cannot_hold_has_a_price_and_a_way_back(raw):
    code = information_bottleneck(
        nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(1, 3)), F.cross_entropy, beta=0.1, latent=1
    ).code
    x = torch.tensor([[0.5, raw]], requires_grad=True)
    price = code.divergence(x, {})
    assert price.item() == pytest.approx((0.25 - 1) / 2 - raw, rel=1e-6)
    (gradient,) = torch.autograd.grad(price.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[0.5, -1.0]]))


def test_float32_is_solved_in_float32():
    torch.manual_seed(0)
    encoder, decoder = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(2, 3))
    problem = information_bottleneck(encoder, decoder, F.cross_entropy, beta=0.1, latent=2, prior="learned")
    solution = mfoc.solve(problem, SGD, with_noise((DATA[0].float(), DATA[1]), 2), steps=2)
    assert {leaf.dtype for leaf in mfoc.tree.leaves(solution.controls)} == {torch.float32}


def test_dearer_information_is_let_through_less():
    rates = []
    for beta in (1e-3, 1.0):
        problem, *_ = classifier(beta)
        adam = mfoc.Gradient(partial(torch.optim.Adam, lr=0.02))
        solution = mfoc.solve(problem, adam, with_noise(DATA, 2), steps=200)
        rates.append(problem.rates(solution, with_noise(DATA, 2, seed=9)).rate)
    assert rates[0] > 1 > 0.05 > rates[1]


def test_a_solution_is_read_as_two_modules():
    problem, encoder, decoder = classifier(prior="learned")
    solution = mfoc.solve(problem, SGD, with_noise(DATA, 2), steps=3)
    first, second = problem.modules(solution)
    assert type(first) is type(second) is nn.Sequential
    assert torch.equal(second[2].weight, solution.controls[6]["weight"])
    assert not torch.equal(first[0].weight, encoder[0].weight)
    again = problem.modules(problem)
    assert torch.equal(again[0](DATA[0]), encoder(DATA[0]))
    assert torch.equal(again[1](DATA[0][:, :2]), decoder(DATA[0][:, :2]))
    with pytest.raises(InvalidValue, match="stages"):
        problem.modules(solution.controls[:-1])


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"beta": 0.0}, InvalidValue, "beta"),
        ({"beta": math.nan}, InvalidValue, "beta"),
        ({"noise": 0.0}, InvalidValue, "noise"),
        ({"latent": 0}, InvalidValue, "latent"),
        ({"latent": 2.0}, InvalidType, "latent"),
        ({"prior": "flat"}, InvalidValue, "prior"),
        ({"encoder": len}, InvalidType, "Module"),
        ({"loss": 3}, InvalidType, "loss"),
    ],
    ids=["free", "nan", "no noise", "no latent", "half", "prior", "encoder", "loss"],
)
def test_settings_that_make_no_bottleneck_are_refused(settings, kind, says):
    one = nn.Sequential(nn.Linear(2, 2))
    arguments = {"encoder": one, "decoder": one, "loss": F.cross_entropy, "beta": 0.1, "latent": 1} | settings
    with pytest.raises(kind, match=says):
        information_bottleneck(**arguments)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (DATA[1], "no noise"),
        ({"y": DATA[1]}, "no noise"),
        ({"y": DATA[1], "noise": normal(12, 3)}, r"\(12, 2\)"),
        ({"noise": normal(12, 2)}, "targets"),
    ],
    ids=["labels", "no noise", "too much noise", "no targets"],
)
def test_data_without_targets_or_noise_is_refused_with_the_cure(data, says):
    with pytest.raises(InvalidValue, match=says) as caught:
        mfoc.solve(classifier()[0], SGD, mfoc.Particles(DATA[0], data), steps=1)
    assert "with_noise" in str(caught.value)


def test_an_encoder_of_another_size_is_refused():
    problem, *_ = classifier(noise=1.0)
    with pytest.raises(InvalidValue, match=r"\[N, 2\]"):
        mfoc.solve(problem, SGD, with_noise(DATA, 2), steps=1)

"""Predictions and metrics against closed forms and sums written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.bayesian import accuracy, band, calibration, ece, nll, predict, reliability, rmse, variational
from tests.problems import D, normal, seeded


def solved(net, data, **settings):
    f = variational(net, data, init_scale=0.3, **settings)
    solution = mfoc.Iterate(0, f.problem.controls, {})
    return f.readout(solution)


def line():
    """A line with known law: slope N(2, 0.3^2), offset N(-1, 0.3^2), noise 0.5."""
    layer = nn.Linear(1, 1).double()
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(-1.0)
    return solved(nn.Sequential(layer), (normal(5, 1), normal(5, 1)), likelihood="gaussian", noise=0.5)


def classes():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)))
    return solved(net, (normal(9, 3), torch.arange(9) % 4), likelihood="categorical")


def test_the_predictive_law_of_a_line():
    """Mean 2x - 1, epistemic variance 0.09 (x^2 + 1), aleatoric 0.25; and the density of their sum."""
    x, y = normal(6, 1, seed=3), normal(6, 1, seed=4)
    p, s = predict(line(), x, samples=20_000), 20_000
    variance = 0.09 * (x.square() + 1)
    assert float((p.mean - (2 * x - 1)).abs().max()) < 5 * float(variance.sqrt().max()) / math.sqrt(s)
    torch.testing.assert_close(p.epistemic, variance, rtol=0.05, atol=0)
    torch.testing.assert_close(p.aleatoric, torch.full_like(x, 0.25))
    torch.testing.assert_close(p.total, p.epistemic + p.aleatoric)
    law = torch.distributions.Normal(2 * x - 1, (variance + 0.25).sqrt())
    assert nll(p, y) == pytest.approx(float(-law.log_prob(y).mean()), rel=0.03)
    assert rmse(p, y) == pytest.approx(float((p.mean - y).square().mean().sqrt()))


def test_the_variance_is_that_of_the_mixture():
    """The parts add up to the variance of observations drawn from the mixture."""
    posterior, x = line(), normal(3, 1, seed=3)
    p = predict(posterior, x, samples=4000)
    outputs = posterior.outputs(x, 4000)
    drawn = outputs + 0.5 * normal(4000, 3, 1, seed=8)
    torch.testing.assert_close(drawn.var(0), p.total, rtol=0.12, atol=0)


def test_classes_against_sums_written_out():
    posterior, x, y = classes(), normal(7, 3, seed=3), torch.arange(7) % 4
    p = predict(posterior, x, samples=50, seed=3, batch_size=2)
    each = torch.stack([posterior_net(posterior, s, x, 50, 3) for s in range(50)]).softmax(-1)
    mean = each.mean(0)
    torch.testing.assert_close(p.mean, mean)
    entropies = [[-sum(float(q) * math.log(q) for q in row) for row in draw] for draw in each]
    aleatoric = torch.tensor(entropies, dtype=D).mean(0)
    torch.testing.assert_close(p.aleatoric, aleatoric)
    information = (each * (each.log() - mean.log())).sum(-1).mean(0)
    torch.testing.assert_close(p.epistemic, information)
    assert nll(p, y) == pytest.approx(float(F.nll_loss(mean.log(), y)))
    assert nll(p, y) == pytest.approx(nll(p.mean, y))
    assert accuracy(p, y) == float((mean.argmax(1) == y).double().mean())


def posterior_net(posterior, s, x, samples, seed):
    weights = {name: value[s] for name, value in posterior.weights(samples, seed=seed).items()}
    return torch.func.functional_call(posterior.at_mean(), weights, (x,))


def test_one_draw_is_a_network_without_epistemic_part():
    posterior, x = classes(), normal(7, 3, seed=3)
    p = predict(posterior, x, samples=1, seed=5)
    torch.testing.assert_close(p.mean, posterior.draw(seed=5)(x).softmax(1).detach())
    torch.testing.assert_close(p.epistemic, torch.zeros(7, dtype=D))


def test_learned_noise_is_the_aleatoric_part():
    posterior = solved(nn.Sequential(nn.Linear(2, 3).double()), (normal(8, 2), normal(8, 3)), likelihood="gaussian")
    p = predict(posterior, normal(4, 2), samples=10)
    torch.testing.assert_close(p.aleatoric, posterior.observation_noise.square().expand(4, 3))
    assert math.isfinite(nll(p, normal(4, 3)))


def test_a_likelihood_that_is_a_function_has_no_aleatoric_part():
    loss = lambda out, y: (out - y).square().sum(1)  # noqa: E731
    posterior = solved(nn.Sequential(nn.Linear(2, 3).double()), (normal(8, 2), normal(8, 3)), likelihood=loss)
    x, y = normal(4, 2), normal(4, 3)
    p = predict(posterior, x, samples=10)
    each = torch.stack([loss(out, y) for out in posterior.outputs(x, 10)])
    torch.testing.assert_close(p.log_prob(y), (-each).exp().mean(0).log())
    with pytest.raises(mfoc.InvalidValue, match="spread"):
        _ = p.total


def test_pyro_models_predict():
    pyro = pytest.importorskip("pyro")
    dist = pyro.distributions

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=D), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 0.5), obs=y)

    x, y = normal(6, seed=1), normal(6, seed=2)
    f = variational(model, (x, y))
    guide = f.readout(mfoc.Iterate(0, f.problem.controls, {}))
    loc, scale = (float(getattr(guide, part).w.detach()) for part in ("locs", "scales"))
    p = predict(guide, (x,), samples=2000, seed=1)
    torch.testing.assert_close(p.mean, loc * x, rtol=0, atol=5 * scale * float(x.abs().max()) / math.sqrt(2000))
    torch.testing.assert_close(p.epistemic, scale**2 * x.square(), rtol=0.15, atol=0)
    torch.testing.assert_close(p.aleatoric, torch.full_like(x, 0.25))
    law = torch.distributions.Normal(loc * x, (scale**2 * x.square() + 0.25).sqrt())
    torch.testing.assert_close(p.log_prob(y), law.log_prob(y), rtol=0, atol=0.02)
    with pytest.raises(mfoc.InvalidValue, match="besides its latents"):
        predict(guide, (x,), site="z")


def test_ece_against_a_loop():
    probabilities, y = (2 * normal(400, 5, seed=1)).softmax(1), torch.arange(400) % 5
    for bins in (1, 7, 15):
        total = 0.0
        for m in range(bins):
            inside = [
                (float(row.max()), int(row.argmax()) == int(label))
                for row, label in zip(probabilities, y, strict=True)
                if m / bins < float(row.max()) <= (m + 1) / bins
            ]
            if inside:
                confidence = sum(c for c, _ in inside) / len(inside)
                right = sum(r for _, r in inside) / len(inside)
                total += len(inside) / 400 * abs(right - confidence)
        assert ece(probabilities, y, bins=bins) == pytest.approx(total)


def test_ece_of_forecasts_that_are_known():
    half = torch.tensor([[0.75, 0.25]] * 4)
    assert ece(half, torch.tensor([0, 0, 0, 1])) == pytest.approx(0)
    assert ece(half, torch.tensor([0, 0, 0, 0])) == pytest.approx(0.25)
    sure = torch.eye(3)[[0, 1, 2]]
    assert ece(sure, torch.tensor([0, 1, 1])) == pytest.approx(1 / 3)
    assert int(reliability(sure, torch.tensor([0, 1, 1])).counts.sum()) == 3


def test_figures():
    pytest.importorskip("matplotlib")
    x, y = normal(30, 1, seed=3), normal(30, 1, seed=4)
    figure = band(x, predict(line(), x, samples=20), data=(x, y), title="a line")
    (axis,) = figure.axes
    drawn = axis.lines[0].get_xdata()
    assert list(drawn) == sorted(drawn)
    p, labels = predict(classes(), normal(40, 3), samples=20), torch.arange(40) % 4
    figure = calibration({"Bayesian": reliability(p, labels), "again": reliability(p.mean, labels)})
    assert "ECE" in figure.axes[0].get_legend_handles_labels()[1][1]
    figure.canvas.draw()


def test_what_is_refused():
    posterior, x, y = classes(), normal(7, 3), torch.arange(7) % 4
    p, q = predict(posterior, x, samples=2), predict(line(), normal(4, 1), samples=2)

    def refused(error, words, function, *args, **kwargs):
        with pytest.raises(error, match=words):
            function(*args, **kwargs)

    value, kind = mfoc.InvalidValue, mfoc.InvalidType
    refused(value, "samples is 0", predict, posterior, x, samples=0)
    refused(kind, "seed is", predict, posterior, x, seed="a")
    refused(value, "seed is", predict, posterior, x, seed=-1)
    refused(kind, "x is a str", predict, posterior, "a")
    refused(value, "x holds NaN", predict, posterior, x * math.nan)
    refused(value, "batch_size is", predict, posterior, x, batch_size=-1)
    refused(kind, "readout", predict, 3, x)
    refused(value, "expected inputs", predict, posterior, torch.tensor(1.0))
    refused(value, "for numbers", rmse, p, normal(7, 4))
    refused(value, "must agree", rmse, q, normal(4, 2))
    refused(value, "must agree", nll, q, normal(3))
    refused(value, "for classes", ece, q, y)
    refused(value, "integer labels", ece, p, y[:3])
    refused(value, "sum to 1", ece, normal(7, 4), y)
    refused(value, "bins is 0", ece, p, y, bins=0)
    refused(value, "probabilities of classes", ece, normal(7), y)
    refused(kind, "y has dtype torch.float32; expected 7 integer", ece, p, y.float())
    refused(kind, "y is a list", ece, p, [0] * 7)
    refused(kind, "expected a dict", calibration, p)
    refused(value, "a band is for numbers", band, normal(7), p)
    refused(value, "one number for each", band, normal(9), q)
    refused(value, "samples is", posterior.weights, 0)

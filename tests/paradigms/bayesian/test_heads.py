"""Networks that return more than one tensor, numbers as parameters, and dtypes, at the Bayesian doors."""

from collections import namedtuple
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import mfoc
from paradigms.bayesian import NegativeLogLikelihood, ensemble, log_density, nll, predict, rmse, variational
from tests.paradigms.unmapped import Scale, at, slopes

Pair = namedtuple("Pair", "mean log_variance")
HEADS = {
    "tuple": (lambda a, b: (a, b), lambda out: out),
    "list": (lambda a, b: [a, b], lambda out: out),
    "dict": (lambda a, b: {"mean": a, "more": {"variance": b}}, lambda out: (out["mean"], out["more"]["variance"])),
    "named tuple": (Pair, lambda out: (out.mean, out.log_variance)),
}  # fmt: skip


class TwoHeads(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body, self.mean, self.variance, self.wrap = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1), wrap

    def forward(self, x):
        hidden = self.body(x).tanh()
        return self.wrap(self.mean(hidden)[:, 0], self.variance(hidden)[:, 0])


def made(kind):
    wrap, read = HEADS[kind]
    torch.manual_seed(0)

    def cost(out, y):
        mean, log_variance = read(out)
        return -Normal(mean, (log_variance / 2).exp()).log_prob(y)

    return TwoHeads(wrap).double(), torch.randn(6, 3).double(), torch.randn(6).double(), cost, read


@pytest.mark.parametrize("kind", HEADS)
def test_log_density_and_its_ensemble(kind):
    net, x, y, cost, read = made(kind)
    density = log_density(net, (x, y), likelihood=NegativeLogLikelihood(cost))
    points = density.initial(3)
    value, score = density.value_and_score(points)
    outputs = []
    for i, point in enumerate(points):
        solved = at(net, density.unravel(point))
        outputs.append(read(solved(x)))
        plain = -cost(solved(x), y).sum() + sum(Normal(0.0, 1.0).log_prob(p).sum() for p in solved.parameters())
        torch.testing.assert_close(value[i], plain.detach())
        torch.testing.assert_close(score[i], torch.cat([s.flatten() for s in slopes(plain, solved).values()]))
    prediction = predict(ensemble(net, density.named(points), likelihood=cost), x, batch_size=4)
    for found, spread, each in zip(
        read(prediction.mean), read(prediction.epistemic), zip(*outputs, strict=True), strict=True
    ):
        torch.testing.assert_close(found, torch.stack(each).mean(0).detach())
        torch.testing.assert_close(spread, torch.stack(each).var(0).detach())
    likelihoods = torch.stack([Normal(m, (v / 2).exp()).log_prob(y).exp() for m, v in outputs])
    assert nll(prediction, y) == pytest.approx(float(-likelihoods.detach().mean(0).log().mean()))
    assert "each output" in repr(prediction)
    with pytest.raises(mfoc.InvalidType, match="several outputs"):
        rmse(prediction, y)
    assert rmse(read(prediction.mean)[0], y) > 0


@pytest.mark.parametrize("kind", HEADS)
def test_variational(kind):
    net, x, y, cost, read = made(kind)
    formulation = variational(nn.Sequential(net), (x, y), likelihood=cost, samples=2, kl="sampled")
    solution = formulation.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=0.01)), steps=2)
    posterior = formulation.readout(solution)
    prediction, weights = predict(posterior, x, samples=3, batch_size=4), posterior.weights(3)
    plain = [read(at(nn.Sequential(net), {k: w[i] for k, w in weights.items()})(x)) for i in range(3)]
    for found, each in zip(read(prediction.mean), zip(*plain, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(each).mean(0).detach())


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_likelihood_of_one_tensor_refuses_more(kind, likelihood):
    net, x, y, *_ = made(kind)
    y = y if likelihood == "gaussian" else (y > 0).long()
    with pytest.raises(mfoc.InvalidType, match=r"needs one tensor.*function"):
        log_density(net, (x, y), likelihood=likelihood)
    with pytest.raises(mfoc.InvalidType, match=r"needs one tensor.*function"):
        variational(nn.Sequential(net), (x, y), likelihood=likelihood)


def test_outputs_that_are_no_tensors():
    net, x, y, cost, _ = made("tuple")
    net.wrap = lambda a, b: "words"
    with pytest.raises(mfoc.InvalidType, match="returns a str"):
        log_density(net, (x, y), likelihood=NegativeLogLikelihood(lambda out, y: cost((y, y), y)))


@pytest.mark.parametrize("options", [{}, {"kl": "sampled"}, {"estimator": "flipout"}, {"estimator": "local"}])
def test_a_parameter_that_is_a_number(options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), Scale()).double()
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    formulation = variational(net, (x, y), likelihood="gaussian", samples=2, **options)
    posterior = formulation.readout(formulation.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=0.01)), steps=1))
    assert posterior.mean["1.scale"].shape == posterior.scale["1.scale"].shape == ()
    assert posterior.weights(3)["1.scale"].shape == (3,)
    torch.testing.assert_close(posterior.at_mean()[1].scale.detach(), posterior.mean["1.scale"])
    assert posterior.draw()(x).shape == (6, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("words", [False, True])
def test_dtypes(dtype, words):
    """That of the weights is that of the numbers, integers as inputs or not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2)) if words else nn.Sequential(nn.Linear(3, 2))
    x = torch.randint(0, 5, (6, 3)) if words else torch.randn(6, 3, dtype=dtype)
    y, net = torch.arange(6) % 2, net.to(dtype)
    density = log_density(net, (x, y), likelihood="categorical")
    assert density(density.initial(2)).dtype == density.score(density.initial(2)).dtype == dtype
    formulation = variational(net, (x, y), likelihood="categorical", samples=2)
    problem = formulation.problem
    assert mfoc.evaluate(problem, problem.controls, formulation.population(0)).value.dtype == dtype
    members = ensemble(net, density.named(density.initial(2)), likelihood="categorical")
    for law in (formulation.readout(problem), members):
        prediction = predict(law, x, samples=2)
        assert prediction.mean.dtype == dtype
        assert nll(prediction, y) > 0


def test_integers_that_enter_a_stage_without_weights():
    class OneHot(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(x, 5).double().flatten(1)

    x, y = torch.randint(0, 5, (6, 3)), torch.arange(6) % 2
    formulation = variational(nn.Sequential(OneHot(), nn.Linear(15, 2)).double(), (x, y), likelihood="categorical")
    assert predict(formulation.readout(formulation.problem), x, samples=2).mean.shape == (6, 2)


def test_inputs_of_an_ensemble_take_the_dtype_of_its_weights():
    net = nn.Linear(3, 1).double()
    members = ensemble(net, {k: p.detach()[None] for k, p in net.named_parameters()}, likelihood="gaussian", noise=1.0)
    x = torch.randn(4, 3)
    torch.testing.assert_close(predict(members, x).mean, net(x.double()).detach())

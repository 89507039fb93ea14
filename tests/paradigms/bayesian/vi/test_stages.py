"""Stages with random weights: each way of drawing them, against the layer itself and the moments of its activations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.bayesian.vi.stages import RandomStage
from tests.problems import D, generator, normal, seeded


def laws(layer, scale=0.4):
    """A law on a layer's weights, and its stage."""
    weights = {key: value.detach() for key, value in layer.named_parameters()}

    def stage(estimator):
        run = lambda x, w: torch.func.functional_call(layer, w, (x,))  # noqa: E731
        return RandomStage(run, layer, weights, estimator)

    loc = torch.cat([w.reshape(-1) for w in weights.values()])
    rho = math.log(math.expm1(scale)) + 0.3 * normal(*loc.shape, seed=7)
    return {"loc": loc, "scale": rho}, stage


def noises(shapes, seed=0):
    normals, signs = shapes
    g = generator(seed)
    made = {k: torch.randn(s, generator=g, dtype=D) for k, s in normals.items()}
    return made | {k: 2.0 * torch.randint(2, s, generator=g) - 1.0 for k, s in signs.items()}


LAYERS = {
    "linear": (lambda: nn.Linear(3, 2), (4, 3)),
    "no bias": (lambda: nn.Linear(3, 2, bias=False), (4, 3)),
    "sequence": (lambda: nn.Linear(3, 2), (4, 2, 3)),
    "conv": (lambda: nn.Conv2d(2, 3, 2, stride=2), (4, 2, 4, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2), (4, 2, 4)),
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_drawn_weights_are_the_layer_at_each_draw(name, together):
    make, shape = LAYERS[name]
    layer = seeded(make)
    u, stage = laws(layer)
    x = normal(*shape, seed=3).expand(5, *shape)
    x = x if together else x + 0.1 * normal(5, *shape, seed=4)
    made = stage("weights")
    noise = normal(5, len(u["loc"]), seed=5)
    out = made(x, u, {"weights": noise})
    for s in range(5):
        w = u["loc"] + F.softplus(u["scale"]) * noise[s]
        torch.testing.assert_close(out[s], torch.func.functional_call(layer, made.split(w), (x[s],)))


@pytest.mark.parametrize("estimator", ["local", "flipout"])
@pytest.mark.parametrize("name", LAYERS)
def test_estimators_have_the_moments_of_drawn_weights(name, estimator):
    """Mean and variance of each activation: sum over weights of loc x and scale^2 x^2."""
    make, shape = LAYERS[name]
    layer, s = seeded(make), 20_000
    u, stage = laws(layer)
    made = stage(estimator)
    x = normal(*shape, seed=3)
    leaving = layer(x).shape
    if estimator == "local" and (len(shape) > 2 or not isinstance(layer, nn.Linear)):  # activations share weights
        with pytest.raises(mfoc.InvalidValue, match="flipout"):
            made(x.expand(s, *shape), u, noises(made.noise(s, shape, tuple(leaving))))
        return
    out = made(x.expand(s, *shape), u, noises(made.noise(s, shape, tuple(leaving))))
    call = lambda w, x: torch.func.functional_call(layer, made.split(w), (x,))  # noqa: E731
    mean, variance = call(u["loc"], x), call(F.softplus(u["scale"]).square(), x.square())
    assert float(((out.mean(0) - mean) / (variance / s).sqrt()).abs().max()) < 5
    torch.testing.assert_close(out.var(0), variance, rtol=0.06, atol=0)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_estimators_decorrelate_the_inputs_of_a_batch(estimator):
    """Two inputs share the drawn weights, but neither activations nor flipped ones, given the same x."""
    layer, s = seeded(lambda: nn.Linear(3, 1)), 20_000
    u, stage = laws(layer)
    x = normal(1, 3, seed=3).expand(2, 3)

    def correlation(name):
        made = stage(name)
        out = made(x.expand(s, 2, 3), u, noises(made.noise(s, (2, 3), (2, 1))))[..., 0]
        return float(torch.corrcoef(out.mT)[0, 1])

    assert correlation("weights") == pytest.approx(1)
    assert abs(correlation(estimator)) < 0.05


def last_layer(bias, b=330):
    """A layer of one output on states large enough for its own derivatives, a loss of draws and what it depends on."""
    layer = seeded(lambda: nn.Linear(50, 1, bias=bias))
    u, stage = laws(layer)
    leaves = [u["loc"].requires_grad_(), u["scale"].requires_grad_(), normal(4, b, 50, seed=3).requires_grad_()]
    noise, made = normal(4, len(u["loc"]), seed=5), stage("weights")

    def run(loc, rho, x):
        return made(x, {"loc": loc, "scale": rho}, {"weights": noise})

    def plain(loc, rho, x):
        weights = made.split(loc + F.softplus(rho) * noise)
        return torch.stack([F.linear(x[s], *(w[s] for w in weights.values())) for s in range(4)])

    return run, plain, leaves


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_of_a_large_network_has_the_derivatives_of_the_layer_at_each_draw(bias):
    run, plain, leaves = last_layer(bias)
    assert "OneOutput" in str(run(*leaves).mT.grad_fn.next_functions) + str(run(*leaves).grad_fn.next_functions)

    def second(function):
        first = torch.autograd.grad(function(*leaves).sin().sum(), leaves, create_graph=True)
        return first, torch.autograd.grad(sum(slope.square().sum() for slope in first), leaves)

    torch.testing.assert_close(run(*leaves), plain(*leaves))
    torch.testing.assert_close(second(run), second(plain))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_the_last_layer_is_differentiated_in_what_is_asked_for(wanted):
    run, plain, leaves = last_layer(True)
    leaves = [leaf.detach().requires_grad_(k in wanted) for k, leaf in enumerate(leaves)]
    asked = [leaves[k] for k in wanted]
    mine, theirs = (torch.autograd.grad(function(*leaves).sin().sum(), asked) for function in (run, plain))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.slow  # the first forward derivative imports much
def test_the_last_layer_goes_through_transforms_and_forward_mode():
    run, plain, leaves = last_layer(True)
    loss = lambda function: lambda *given: function(*given).sin().sum()  # noqa: E731
    slopes = [torch.func.grad(loss(function), (0, 1, 2))(*leaves) for function in (run, plain)]
    torch.testing.assert_close(*slopes)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(leaf, leaf.detach().cos()) for leaf in leaves]
        tangents = [torch.autograd.forward_ad.unpack_dual(function(*duals)).tangent for function in (run, plain)]
    torch.testing.assert_close(*tangents)
    seeds = normal(3, 4, 330, 1, seed=8)
    many = [torch.autograd.grad(f(*leaves), leaves, seeds, is_grads_batched=True) for f in (run, plain)]
    torch.testing.assert_close(*many)

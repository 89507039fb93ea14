"""Particles as networks: predictions from the draws of any sampler."""

import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import ensemble, langevin, log_density, nll, predict, rmse, svgd
from tests.problems import D, normal, seeded


def make_net():
    return seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))).to(D)


X = normal(30, 2)
Y = X.sum(1, keepdim=True) + 0.1 * normal(30, 1, seed=1)


@pytest.mark.parametrize("sampler", [langevin, svgd])
@pytest.mark.parametrize("noise", [0.3, None])
def test_particles_predict_what_each_network_says(sampler, noise):
    net = make_net()
    density = log_density(net, (X, Y), likelihood="gaussian", noise=noise)
    made = sampler(density, step=1e-3, steps=5, particles=7)
    draws = made.readout(mfoc.Iterate(0, made.problem.controls, None))
    found = predict(ensemble(net, draws, likelihood="gaussian", noise=noise), X)
    outs = torch.stack(
        [torch.func.functional_call(net, {k: v[i] for k, v in draws.items() if k != "noise"}, (X,)) for i in range(7)]
    ).detach()
    scale = torch.full((7,), 0.3, dtype=D) if noise else draws["noise"].reshape(7)
    torch.testing.assert_close(found.mean, outs.mean(0))
    torch.testing.assert_close(found.epistemic, outs.var(0))
    torch.testing.assert_close(found.aleatoric, scale.square().mean().expand(30, 1))
    each = torch.distributions.Normal(outs, scale.view(7, 1, 1)).log_prob(Y)[..., 0]
    assert float(nll(found, Y)) == pytest.approx(-float((each.logsumexp(0) - torch.tensor(7.0).log()).mean()), rel=1e-6)
    assert float(rmse(found, Y)) == pytest.approx(float((outs.mean(0) - Y).square().mean().sqrt()))


def test_fewer_samples_are_members_of_the_ensemble():
    net = make_net()
    weights = {name: normal(9, *p.shape, seed=i) for i, (name, p) in enumerate(net.named_parameters())}
    made = ensemble(net, weights, likelihood="categorical")
    some, every = made.outputs(X, 4), made.outputs(X, 100)
    assert len(every) == len(made) == 9
    assert all(any(torch.allclose(one, other) for other in every) for one in some)
    assert torch.equal(some, made.outputs(X, 4))


@pytest.mark.parametrize(
    ("draws", "words"),
    [
        ({}, "draws holds"),
        ({"0.weight": torch.zeros(3, 4, 2)}, "draws holds"),
        ({"0.weight": torch.zeros(3, 2, 4), "0.bias": torch.zeros(3, 4)}, "draws holds|shape"),
        ([1], "expected a dict"),
    ],
)
def test_draws_of_another_network_are_refused(draws, words):
    with pytest.raises(mfoc.MfocError, match=words):
        ensemble(make_net(), draws, likelihood="categorical")


def test_bare_draws_say_what_to_do():
    with pytest.raises(mfoc.InvalidType, match="ensemble"):
        predict({"0.weight": torch.zeros(3, 4, 2)}, X)

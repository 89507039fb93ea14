"""Networks that vmap cannot follow, at every Bayesian door: values and gradients are those of plain torch."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

import mfoc
from paradigms.bayesian import ensemble, log_density, predict, variational
from tests.paradigms.unmapped import NETS, at, made, slopes

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def posterior_at(net, weights, x, y, share=1.0):
    """The log posterior of one set of weights and its gradient, by plain torch."""
    solved = at(net, weights)
    value = -share * F.cross_entropy(solved(x), y, reduction="sum")
    value = value + sum(Normal(0.0, 1.0).log_prob(p).sum() for p in solved.parameters())
    return value.detach(), torch.cat([slope.flatten() for slope in slopes(value, solved).values()])


@pytest.mark.parametrize("name", NETS)
def test_log_density(name, caplog):
    net, x, y = made(name)
    density = log_density(net, (x, y), likelihood="categorical")
    points, index = density.initial(3, seed=1), torch.tensor([[0, 1], [2, 3], [4, 4]])
    graph = density(points.clone().requires_grad_())
    for value, score in (density.value_and_score(points), (graph, density.score(points))):
        for i, point in enumerate(points):
            plain = posterior_at(net, density.unravel(point), x, y)
            torch.testing.assert_close((value[i].detach(), score[i]), plain, **EXACT)
    value, score = density.value_and_score(points, index)
    for i, point in enumerate(points):
        plain = posterior_at(net, density.unravel(point), x[index[i]], y[index[i]], share=3.0)
        torch.testing.assert_close((value[i], score[i]), plain, **EXACT)
    if NETS[name][2] is not None:
        assert [record.levelname for record in caplog.records] == ["WARNING"] * NETS[name][2]


@pytest.mark.parametrize("name", NETS)
def test_ensemble(name):
    net, x, _ = made(name)
    draws = {key: torch.randn(3, *p.shape, dtype=p.dtype) for key, p in net.named_parameters()}
    members = ensemble(net, draws, likelihood="categorical")
    plain = torch.stack([at(net, {key: leaf[i] for key, leaf in draws.items()})(x) for i in range(3)]).detach()
    torch.testing.assert_close(members.outputs(x), plain, **EXACT)
    torch.testing.assert_close(predict(members, x, batch_size=4).mean, plain.softmax(-1).mean(0), **EXACT)


@pytest.mark.parametrize("name", NETS)
def test_variational(name, caplog):
    net, x, y = made(name)
    chain = net if isinstance(net, nn.Sequential) else nn.Sequential(net)
    formulation = variational(chain, (x, y), likelihood="categorical", samples=3)
    problem, cloud = formulation.problem, formulation.population(0)
    found = mfoc.evaluate(problem, problem.controls, cloud)
    controls = [{key: leaf.clone().requires_grad_() for key, leaf in u.items()} for u in problem.controls]
    network = formulation.readout(problem).network
    laws = [Normal(u["loc"], F.softplus(u["scale"])) for u in controls if u]
    total = sum(kl_divergence(law, Normal(0.0, 1.0)).sum() for law in laws) / len(x)
    for i in range(3):
        weights = {}
        for stage, names, u, noise in zip(network.stages, network.names, controls, cloud.data["noise"], strict=True):
            if u:
                vector = u["loc"] + F.softplus(u["scale"]) * noise["weights"][i]
                weights |= {names[key]: leaf for key, leaf in stage.split(vector).items()}
        solved = at(chain, weights)
        loss = F.cross_entropy(solved(x), y) / 3
        slope = slopes(loss, solved)
        # The loss, and a term of value zero that has its gradient in the weights.
        total = total + loss.detach() + sum((slope[key] * (w - w.detach())).sum() for key, w in weights.items())
    plain = torch.autograd.grad(total, [leaf for u in controls for leaf in u.values()])
    torch.testing.assert_close(found.value, total.detach(), **EXACT)
    torch.testing.assert_close([leaf for u in found.gradient for leaf in u.values()], list(plain), **EXACT)
    if NETS[name][2] is not None:
        assert len(caplog.records) == NETS[name][2]


@pytest.mark.parametrize("name", NETS)
def test_prediction_of_a_posterior(name):
    net, x, y = made(name)
    chain = net if isinstance(net, nn.Sequential) else nn.Sequential(net)
    formulation = variational(chain, (x, y), likelihood="categorical")
    posterior = formulation.readout(formulation.problem)
    weights = posterior.weights(3)
    plain = [at(chain, {key: leaf[i] for key, leaf in weights.items()})(x).softmax(-1) for i in range(3)]
    torch.testing.assert_close(
        predict(posterior, x, samples=3, batch_size=4).mean, torch.stack(plain).mean(0).detach(), **EXACT
    )


def test_a_loop_is_said_once(caplog):
    net, x, y = made("branch on values")
    density = log_density(net, (x, y), likelihood="categorical")
    for _ in range(3):
        density.score(density.initial(4))
        density(density.initial(4))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "once for each particle" in record.getMessage()


def test_randomness_is_refused_at_every_door():
    """A draw that no module tells of."""

    class Noisy(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return out + torch.randn(()) if out.sum() > 0 else out - torch.randn(())

    x, y = torch.randn(6, 3), torch.arange(6) % 2
    with pytest.raises(mfoc.InvalidValue, match="random numbers"):
        log_density(Noisy(3, 2), (x, y), likelihood="categorical")
    with pytest.raises(mfoc.InvalidValue, match="random numbers"):
        variational(nn.Sequential(Noisy(3, 2)), (x, y), likelihood="categorical", samples=2)
    draws = {"weight": torch.randn(3, 2, 3), "bias": torch.randn(3, 2)}
    with pytest.raises(mfoc.InvalidValue, match="random numbers"):
        predict(ensemble(Noisy(3, 2), draws, likelihood="categorical"), x)


def test_errors_of_a_network_are_its_own():
    net, x, y = made("lstm")
    with pytest.raises(mfoc.InvalidValue, match=r"input.*3"):
        log_density(net, (x[..., :2], y), likelihood="categorical")
    members = ensemble(net, {key: p.detach()[None] for key, p in net.named_parameters()}, likelihood="categorical")
    with pytest.raises(mfoc.InvalidValue, match=r"input.*3"):
        predict(members, x[..., :2])


def test_a_forward_that_counts_in_its_buffers_is_refused():
    """Its value would depend on how often it was asked for."""

    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return super().forward(x) * self.calls

    net, x, y = Counting(), torch.randn(6, 3), torch.arange(6) % 2
    for door in (log_density, variational):
        with pytest.raises(mfoc.InvalidValue, match="another function after it has run"):
            door(net, (x, y), likelihood="categorical")
    assert float(net.calls) == 0


def test_inputs_are_not_written_into():
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    kept = x.clone()
    density = log_density(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), (x, y), likelihood="categorical")
    density.score(density.initial(2))
    assert torch.equal(x, kept)

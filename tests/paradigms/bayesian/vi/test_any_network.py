"""Networks of all kinds with random weights: draws, predictions and models of Pyro are what plain torch computes."""

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn.utils import parametrizations

import mfoc
from mfoc.testing import check_formulation
from paradigms.bayesian import predict, variational
from tests.paradigms.unmapped import at
from tests.problems import normal, seeded

pyro = pytest.importorskip("pyro")
pytestmark = pytest.mark.usefixtures("double")
N = 6
ROWS, WORDS, LABELS = normal(N, 3, seed=1), torch.arange(5 * N).view(N, 5) % 7, torch.arange(N) % 2


class Two(nn.Module):
    """Two inputs, by name or in order."""

    def __init__(self):
        super().__init__()
        self.words, self.rows, self.head = nn.Embedding(7, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, words, rows, scale=None):
        hidden = (self.words(words).mean(1) + self.rows(rows)).tanh()
        return self.head(hidden if scale is None else hidden * scale)


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        hidden = self.table(x)
        return self.head(self.norm(hidden + hidden.cumsum(1)))


@dataclass
class Law:
    mean: torch.Tensor
    log_variance: torch.Tensor


class Spread(nn.Module):
    """A mean and a log variance, in one of the shapes that outputs have."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.kind = nn.Linear(3, 2), kind

    def forward(self, x):
        return self.kind(*self.body(x).unbind(1))


class Routed(nn.Module):
    """Each row goes to one of its experts, so that no row but its own meets the weights of the other."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

    def forward(self, x):
        return torch.stack([self.experts[int(row[0] > 0)](row) for row in x])


class Moded(nn.Module):
    """Another function in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x):
        return self.body(x) * (2 if self.training else 1)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.first(x)
        hidden[:, 0] = 0.0
        return self.last(F.relu_(hidden.mul_(2)))


def chain(first, **options):
    return nn.Sequential(first(nn.Linear(3, 4), **options), nn.Tanh(), nn.Linear(4, 2))


def of_words(output, y):
    return F.cross_entropy(output.mT, y, reduction="none").mean(1)


def of_law(output, y):
    mean, log = leaves(output)
    return 0.5 * ((y - mean).square() / log.exp() + log)


SPECTRAL = partial(chain, parametrizations.spectral_norm)
CROSS = "categorical"
# name -> the network, its inputs, observations and likelihood
NETS = {
    "inputs in order": (Two, (WORDS, ROWS), LABELS, CROSS),
    "inputs by name": (Two, {"rows": ROWS, "words": WORDS}, LABELS, CROSS),
    "one that may be left out": (Two, {"rows": ROWS, "words": WORDS, "scale": ROWS[:, :1]}, LABELS, CROSS),
    "tied": (Tied, WORDS, WORDS, of_words),
    "tuple": (lambda: Spread(lambda *parts: parts), ROWS, ROWS[:, 0], of_law),
    "dict": (lambda: Spread(lambda a, b: {"mean": a, "log": b}), ROWS, ROWS[:, 0], of_law),
    "dataclass": (lambda: Spread(Law), ROWS, ROWS[:, 0], of_law),
    "routed": (Routed, ROWS, LABELS, CROSS),
    "in place": (InPlace, ROWS, LABELS, CROSS),
    "of two modes": (Moded, ROWS, LABELS, CROSS),
    "weight norm": (lambda: chain(parametrizations.weight_norm), ROWS, LABELS, CROSS),
    "spectral norm": (lambda: SPECTRAL(n_power_iterations=60), ROWS, LABELS, CROSS),
    "spectral norm in evaluation mode": (lambda: SPECTRAL().eval(), ROWS, LABELS, CROSS),
    "frozen": (lambda: chain(lambda layer: layer.requires_grad_(False)), ROWS, LABELS, CROSS),
}


def made(name):
    make, x, y, likelihood = NETS[name]
    return seeded(make), x, y, likelihood


def called(net, x):
    return net(**x) if isinstance(x, dict) else net(*x) if isinstance(x, tuple) else net(x)


def leaves(output):
    return [output.mean, output.log_variance] if isinstance(output, Law) else mfoc.tree.leaves(output)


@pytest.mark.parametrize("name", NETS)
def test_j_and_its_gradient(name):
    """A loop over the draws, each put into the network; the KL divergence by torch."""
    net, x, y, likelihood = made(name)
    f = variational(net, (x, y), likelihood=likelihood, samples=2)
    cloud = f.population(0)
    found = mfoc.evaluate(f.problem, f.problem.controls, cloud)
    controls = [{key: leaf.clone().requires_grad_() for key, leaf in u.items()} for u in f.problem.controls]
    network = f.readout(f.problem).network
    laws = [Normal(u["loc"], F.softplus(u["scale"])) for u in controls if u]
    total = sum(kl_divergence(law, Normal(0.0, 1.0)).sum() for law in laws) / N
    for i in range(2):
        weights = {}
        for stage, names, u, noise in zip(network.stages, network.names, controls, cloud.data["noise"], strict=True):
            if u:
                vector = u["loc"] + F.softplus(u["scale"]) * noise["weights"][i]
                weights |= {names[key]: leaf for key, leaf in stage.split(vector).items()}
        solved = copy.deepcopy(net)
        own = {key: p for key, p in solved.named_parameters() if key in weights}
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(weights[key])
        output = called(solved, x)
        loss = (F.cross_entropy(output, y) if likelihood == CROSS else likelihood(output, y).mean()) / 2
        slopes = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
        # The loss, and a term of value zero that has its gradient in the weights.
        total = total + loss.detach()
        total = total + sum((s * (weights[k] - weights[k].detach())).sum() for k, s in zip(own, slopes, strict=True))
    plain = torch.autograd.grad(total, [leaf for u in controls for leaf in u.values()])
    torch.testing.assert_close(found.value, total.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close([leaf for u in found.gradient for leaf in u.values()], list(plain), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_what_is_drawn_is_the_network_in_evaluation_mode(name):
    """``outputs``, ``draw`` and the model of Pyro are one: the network at ``weights``, in evaluation mode."""
    net, x, y, likelihood = made(name)
    f = variational(net, (x, y), likelihood=likelihood)
    posterior = f.readout(f.problem)
    weights = posterior.weights(2, seed=3)
    many = leaves(posterior.outputs(x, 2, seed=3))
    drawn = leaves(called(posterior.draw(seed=3), x))
    for one, all_ in zip(drawn, leaves(posterior.outputs(x, 1, seed=3)), strict=True):
        torch.testing.assert_close(one, all_[0])
    sites = posterior.samples(2, seed=3)
    for i in range(2):
        if name != "spectral norm":  # whose estimate is that of other weights; it is compared in ``draw``
            values = {**dict(net.named_parameters()), **{key: leaf[i] for key, leaf in weights.items()}}
            torch.testing.assert_close(leaves(called(at(net, values).eval(), x)), [leaf[i] for leaf in many])
        given = pyro.condition(posterior.model, {site: leaf[i] for site, leaf in sites.items()})
        torch.testing.assert_close(leaves(given(x)), [leaf[i] for leaf in many])


@pytest.mark.parametrize("name", NETS)
def test_it_is_a_guide_of_its_model(name):
    """Each weight is a site of both, whichever of them the inputs meet; at the mean the guide is the posterior."""
    net, x, y, likelihood = made(name)
    f = variational(net, (x, y), likelihood=likelihood)
    posterior = f.readout(f.problem)
    names = {f"net.{name}" for name, p in net.named_parameters() if p.requires_grad}
    guide, model = (pyro.poutine.trace(each).get_trace(x, y) for each in (posterior, posterior.model))
    assert {site for site in guide.stochastic_nodes if not site.endswith("_unconstrained")} == names
    assert {site for site in model.stochastic_nodes if site != "data"} == names
    for site, value in posterior.guide.median().items():
        torch.testing.assert_close(value.detach(), posterior.mean[site.removeprefix("net.")])
    pyro.infer.SVI(posterior.model, posterior, pyro.optim.SGD({"lr": 1e-3}), pyro.infer.Trace_ELBO()).step(x, y)


def test_a_tied_weight_has_one_law():
    net, x, y, likelihood = made("tied")
    f = variational(net, (x, y), likelihood=likelihood)
    assert f.problem.controls[0]["loc"].numel() == sum(p.numel() for p in net.parameters())
    drawn = f.readout(f.problem).draw()
    assert drawn.head.weight is drawn.table.weight


def test_batches_and_learned_noise_of_several_inputs():
    f = variational(seeded(Two), ((WORDS, ROWS), ROWS[:, :2]), likelihood="gaussian", batch_size=4, samples=3)
    words, rows = f.population(0).state
    assert words.shape == (3, 4, 5)
    assert rows.shape == (3, 4, 3)
    posterior = f.readout(f.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2)), steps=3))
    mean, noise = posterior.outputs((WORDS, ROWS), 4)
    assert mean.shape == (4, N, 2)
    assert noise.shape == (4, 2)


@pytest.mark.parametrize("x", [(WORDS, ROWS), {"rows": ROWS, "words": WORDS}])
def test_prediction_from_several_inputs(x):
    f = variational(seeded(Two), (x, LABELS), likelihood="categorical")
    posterior = f.readout(f.problem)
    found = predict(posterior, x, samples=3, batch_size=4)
    torch.testing.assert_close(found.mean, posterior.outputs(x, 3).softmax(-1).mean(0))
    assert found.log_prob(LABELS).shape == (N,)
    with pytest.raises(mfoc.InvalidValue, match="cannot take inputs x of shape"):
        predict(posterior, (WORDS, ROWS[:, :2]))
    with pytest.raises(mfoc.InvalidValue, match="expected inputs"):
        predict(posterior, (WORDS, ROWS[:2]))


def test_a_weight_of_two_stages_is_refused_with_what_can_be_done_here():
    layer = nn.Linear(3, 3)
    shared = nn.Sequential(layer, nn.Tanh(), layer)
    with pytest.raises(mfoc.InvalidValue, match="choose stages that keep its uses in one") as caught:
        variational(shared, (ROWS, ROWS), likelihood="gaussian")
    assert "tied=True" not in str(caught.value)
    variational(shared, (ROWS, ROWS), likelihood="gaussian", stages=[["0", "1", "2"]])


def test_inputs_that_are_not_the_networks_are_refused():
    for x in (ROWS, (ROWS, ROWS, ROWS), {"words": WORDS}):
        with pytest.raises(mfoc.InvalidType, match="needs words, rows"):
            variational(Two(), (x, LABELS), likelihood="categorical")


def test_what_the_data_reach_is_refused():
    class Shifted(nn.Linear):
        takes_data = True

        def forward(self, x, z):
            return super().forward(x) + z["shift"]

    for layer in (Shifted(3, 2), nn.Sequential(nn.Linear(3, 2), mfoc.networks.MaskedDropout(0.5, "mask"))):
        with pytest.raises(mfoc.InvalidValue, match="takes the data z, and draws predict from the inputs alone"):
            variational(layer, (ROWS, LABELS), likelihood="categorical")
    variational(layer.eval(), (ROWS, LABELS), likelihood="categorical")


@pytest.mark.parametrize("estimator", ["weights", "flipout"])
@pytest.mark.parametrize("stages", [None, ["words", "rows", "head"]])
def test_several_inputs_conform(stages, estimator):
    options = {"likelihood": "categorical", "samples": 2, "estimator": estimator, "stages": stages}
    f = variational(seeded(Two), ({"rows": ROWS, "words": WORDS}, LABELS), **options)
    check_formulation(f, mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2)))

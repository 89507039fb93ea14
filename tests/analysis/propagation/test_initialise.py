"""Initialisation at criticality: the gain of every block is one, lengths last, and nothing else changes."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from mfoc.analysis.jacobians import gain_of
from mfoc.analysis.propagation import Initialisation, critical_init_
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks import Residual


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


class Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)


def mlp(activation, depth=50, width=128, inputs=20, **options):
    layers = []
    for k in range(depth - 1):
        layers += [nn.Linear(width if k else inputs, width, **options), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def lengths_and_gains(net, x, seed=5):
    """Of each dense or convolution layer of a chain: q, and chi from the layer before, by products of our own."""
    q, chi, between, h = [], [], [], x

    def block(u):
        for part in between:
            u = part(u)
        return u

    for part in net:
        between.append(part)
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            copies = h.repeat(16, *[1] * (h.ndim - 1))  # sixteen probes in one backward pass: no particle sees another
            chi.append(gain_of(block, copies, generator=torch.Generator().manual_seed(seed)).value)
            h = block(h).detach()
            q.append(float(h.square().mean()))
            between.clear()
    return q, chi[1:]  # the first layer sees the data


# ---- chains


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, Erf, nn.GELU, nn.SiLU, nn.ELU, nn.Mish, nn.PReLU])
def test_fifty_layers_are_critical(activation):
    net, x = made(lambda: mlp(activation)), normal(32, 20)
    found = critical_init_(net, x)
    q, chi = lengths_and_gains(net, x)
    assert all(abs(each - 1) < 0.05 for each in chi)
    assert all(found.q_star / 3 < each < 3 * found.q_star for each in q)
    assert found.critical
    assert [block.q for block in found.blocks] == pytest.approx(q)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_weights_are_those_of_theory_without_data(orthogonal):
    """tanh at q* = .5: sw2 = 1 / E tanh'^2 and sb2 = q - sw2 E tanh^2 by plain summation."""
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    phi = torch.tanh(math.sqrt(0.5) * z)
    weight_variance = float(1 / (weight * (1 - phi.square()).square()).sum())
    bias_variance = 0.5 - weight_variance * float((weight * phi.square()).sum())

    net = made(lambda: mlp(nn.Tanh, depth=4, width=300))
    critical_init_(net, q_star=0.5, orthogonal=orthogonal)
    for layer in (net[2], net[4]):
        layer.requires_grad_(False)
        assert float(layer.weight.square().mean()) * 300 == pytest.approx(
            weight_variance, rel=1e-9 if orthogonal else 0.02
        )
        assert float(layer.bias.square().mean()) == pytest.approx(bias_variance, rel=1e-9)
    gram = net[2].weight @ net[2].weight.mT / weight_variance
    assert (float((gram - torch.eye(300)).abs().max()) < 1e-9) == orthogonal


def test_relu_is_that_of_he():
    net = made(lambda: mlp(nn.ReLU, depth=3))
    critical_init_(net)
    assert float(net[2].weight.detach().square().mean()) * 128 == pytest.approx(2)
    assert torch.equal(net[2].bias, torch.zeros_like(net[2].bias))


@pytest.mark.parametrize(("outputs", "inputs"), [(40, 10), (10, 40)])
def test_layers_that_are_not_square_keep_the_gain_a_unit(outputs, inputs):
    net = made(lambda: nn.Sequential(nn.Linear(5, inputs), nn.Identity(), nn.Linear(inputs, outputs)))
    critical_init_(net)
    singular = torch.linalg.svdvals(net[2].weight)
    torch.testing.assert_close(singular, torch.full_like(singular, math.sqrt(max(1, outputs / inputs))))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_stack_of_convolutions(activation):
    layers = [nn.Conv2d(2, 48, 3, padding=1), activation()]
    for _ in range(14):
        layers += [nn.Conv2d(48, 48, 3, padding=1), activation()]
    net, x = made(lambda: nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 36, 10))), normal(4, 2, 6, 6)
    found = critical_init_(net, x)
    q, chi = lengths_and_gains(net, x)
    assert all(abs(each - 1) < 0.05 for each in chi)
    assert all(found.q_star / 3 < each < 3 * found.q_star for each in q)
    taps = net[2].weight.detach().abs().sum((0, 1)) > 0
    assert taps.sum() == 1
    assert taps[1, 1]


def test_what_follows_a_pool_is_scaled_as_the_first_layer():
    net = made(
        lambda: nn.Sequential(
            nn.Conv1d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool1d(4), nn.Flatten(), nn.Linear(8 * 4, 16), nn.Tanh(),
            nn.Dropout(0.5), nn.Linear(16, 3),
        )
    )  # fmt: skip
    found = critical_init_(net, normal(9, 1, 16))
    assert [block.q for block in found.blocks[:2]] == pytest.approx([0.05, 0.05])
    assert "dropout was off" in str(found)
    assert all(part.training for part in net.modules())


@pytest.mark.parametrize(("activation", "other"), [(nn.GELU, nn.SiLU), (nn.GELU, nn.Tanh)])
def test_q_star_moves_to_where_it_lasts(activation, other):
    """GELU at q = .05 has chi_q = 1.048: a length that is off doubles in fifteen layers."""
    net = made(lambda: nn.Sequential(*mlp(activation, depth=17, width=64), *mlp(other, depth=16, width=64, inputs=10)))
    found = critical_init_(net, normal(32, 20))
    assert found.q_star > 1
    assert "asked for" in str(found)
    other_data = normal(50, 20, seed=1)
    q, _ = lengths_and_gains(net, other_data)
    assert max(q) < 5 * found.q_star


def test_where_there_is_no_critical_point_the_nearest_is_taken_and_told():
    found = critical_init_(made(lambda: mlp(nn.Softplus, depth=20)), normal(32, 20))
    low, high = found.chi
    assert 0.85 < low < high < 1
    assert str(found).startswith("as near to critical as was found")


def test_layers_without_biases_and_nested_chains():
    inner = [nn.Sequential(nn.Linear(128, 128, bias=False), nn.Sequential(nn.GELU())) for _ in range(20)]
    net = made(lambda: nn.Sequential(nn.Linear(5, 128), nn.GELU(), nn.Sequential(*inner), nn.Linear(128, 2)))
    found = critical_init_(net, normal(64, 5))
    assert all(found.q_star / 3 < block.q < 3 * found.q_star for block in found.blocks)
    assert found.critical


def test_shared_weights_are_drawn_once_and_frozen_ones_kept():
    shared = nn.Linear(32, 32)
    net = made(
        lambda: nn.Sequential(nn.Linear(3, 32), nn.Tanh(), shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(32, 2))
    )
    net[0].weight.requires_grad_(False)
    kept = net[0].weight.clone()
    found = critical_init_(net, normal(16, 3))
    assert torch.equal(net[0].weight, kept)
    assert "weights frozen" in str(found)
    assert "shares its weights" in str(found)
    assert abs(found.blocks[1].chi - 1) < 0.05


# ---- other networks


class Functional(nn.Module):
    """A chain in code of its own, its activations functions."""

    def __init__(self, activation, width=64, depth=16):
        super().__init__()
        self.activation = activation
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 3)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(self.activation(x))
        return self.head(self.activation(x))


class Inline(nn.Module):
    """Residual attention written out in one forward pass, on tokens; the sums are no module's output."""

    def __init__(self, width=32, depth=3):
        super().__init__()
        self.embed, self.place = nn.Embedding(10, width), nn.Parameter(torch.randn(5, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.heads = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(depth))
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(depth)
        )

    def forward(self, tokens):
        x = self.embed(tokens) + self.place
        for k, (heads, wide) in enumerate(zip(self.heads, self.wide, strict=True)):
            h = self.norms[2 * k](x)
            x = x + heads(h, h, h)[0]
            x = x + wide(self.norms[2 * k + 1](x))
        return x


class BasicBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norms[1](self.second(self.relu(self.norms[0](self.first(x)))))
        out += x
        return self.relu(out)


def residual(width=64, depth=8):
    blocks = [
        Residual(nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))) for _ in range(depth)
    ]
    return nn.Sequential(nn.Linear(8, width), *blocks, nn.Linear(width, 3))


def encoder(norm_first, width=64, depth=3):
    make = lambda: nn.TransformerEncoderLayer(width, 4, 128, norm_first=norm_first, batch_first=True)  # noqa: E731
    return nn.Sequential(nn.Linear(8, width), *(make() for _ in range(depth)), nn.Linear(width, 3))


def resnet(channels=16, depth=3):
    stem = [nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(
        *stem, *(BasicBlock(channels) for _ in range(depth)), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(16, 3)
    )


BLOCKS = {  # many particles: few probes are drawn then, and backward passes are what takes the time
    "residual": (residual, (256, 8), Residual),
    "pre-LN": (lambda: encoder(True), (64, 6, 8), nn.TransformerEncoderLayer),
    "post-LN": (lambda: encoder(False), (64, 6, 8), nn.TransformerEncoderLayer),
    "batch norm": (resnet, (48, 1, 6, 6), BasicBlock),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_have_gain_one(name):
    make, shape, kind = BLOCKS[name]
    net, x = made(make), normal(*shape)
    found = critical_init_(net, x)
    for part in net.modules():
        part.training = part.training and not isinstance(part, nn.Dropout | nn.MultiheadAttention)
    q, h = [], x
    for part in net:
        if isinstance(part, kind):
            gain = gain_of(part, h, generator=torch.Generator().manual_seed(5), probes=2)
            assert abs(gain.value - 1) < 0.05
        h = part(h).detach()
        q += [float(h.square().mean())] if isinstance(part, kind) else []
    assert all(found.q_star / 3 < each < 3 * found.q_star for each in q)
    assert found.critical


@pytest.mark.parametrize("activation", [torch.tanh, F.gelu])
def test_activations_that_are_functions(activation):
    """GELU's lengths explode where chi = 1 is tuned at small q*."""
    net, x = made(lambda: Functional(activation)), normal(256, 8)
    found = critical_init_(net, x)
    plain = nn.Sequential(net.stem)
    for layer in (*net.layers, net.head):
        act = Erf()
        act.forward = net.activation
        plain.extend([act, layer])
    q, chi = lengths_and_gains(plain, x)
    assert all(abs(each - 1) < 0.05 for each in chi)
    assert all(found.q_star / 3 < each < 3 * found.q_star for each in q)
    assert (found.q_star == pytest.approx(0.05)) == (activation is torch.tanh)


def test_sums_that_no_module_returns_are_cuts_too():
    tokens = torch.randint(0, 10, (64, 5), generator=torch.Generator().manual_seed(0))
    net = made(Inline)
    before = copy.deepcopy(net)
    found = critical_init_(net, tokens)
    assert [block.name for block in found.blocks[1:3]] == ["heads.0", "wide.0.0 ... wide.0.2"]
    assert found.critical
    assert torch.equal(net.embed.weight, before.embed.weight)
    assert torch.equal(net.place, before.place)


def test_weight_norm_is_tuned_through_its_original_and_spectral_norm_refused():
    wrap = nn.utils.parametrizations.weight_norm
    net = made(lambda: nn.Sequential(nn.Linear(8, 32), nn.Tanh(), wrap(nn.Linear(32, 32)), nn.Tanh(), nn.Linear(32, 2)))
    assert critical_init_(net, normal(32, 8)).critical
    fixed = nn.utils.parametrizations.spectral_norm
    net = made(lambda: nn.Sequential(nn.Linear(8, 32), nn.Tanh(), fixed(nn.Linear(32, 32))))
    with pytest.raises(InvalidValue, match=r"'2'.*_SpectralNorm"):
        critical_init_(net, normal(32, 8))


# ---- what does not change


@pytest.mark.parametrize("make", [lambda: mlp(nn.ReLU, depth=3, inputs=8), lambda: encoder(True), residual])
def test_nothing_but_parameters_changes(make):
    net = made(make)
    x = normal(60, 5, 8)
    net[1].eval()
    loss = net(x).sum()
    loss.backward()
    grads = [parameter.grad for parameter in net.parameters()]
    modes, hooks = [part.training for part in net.modules()], [len(part._forward_hooks) for part in net.modules()]
    identities, buffers = [id(p) for p in net.parameters()], copy.deepcopy(dict(net.named_buffers()))
    kept, state = x.clone(), torch.get_rng_state()
    critical_init_(net, x)
    assert modes == [part.training for part in net.modules()]
    assert hooks == [len(part._forward_hooks) for part in net.modules()]
    assert identities == [id(p) for p in net.parameters()]
    assert all(p.grad is grad and p.requires_grad for p, grad in zip(net.parameters(), grads, strict=True))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())


def test_norms_do_not_advance():
    net = made(resnet)
    before = copy.deepcopy(dict(net.named_buffers()))
    critical_init_(net, normal(48, 1, 6, 6))
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    net, x = made(lambda: mlp(nn.Tanh, depth=6, width=64)).to(dtype), normal(64, 20).to(dtype)
    assert critical_init_(net, x).critical
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}


def test_the_same_seed_gives_the_same_weights():
    nets = [made(lambda: mlp(nn.Tanh, depth=3), seed=k) for k in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        critical_init_(net, normal(8, 20), seed=seed)
    assert torch.equal(nets[0][2].weight, nets[1][2].weight)
    assert not torch.equal(nets[0][2].weight, nets[2][2].weight)


# ---- refusals


def test_bad_input_leaves_the_network_alone():
    net = made(lambda: mlp(nn.Tanh, depth=3))
    before = copy.deepcopy(net.state_dict())
    for error, word, call in (
        (InvalidType, "net", lambda: critical_init_(nn.Linear)),
        (InvalidType, "x is", lambda: critical_init_(net, [1.0])),
        (InvalidValue, "at least one", lambda: critical_init_(net, normal(0, 20))),
        (InvalidValue, "not finite", lambda: critical_init_(net, normal(4, 20) / 0)),
        (InvalidValue, "fails on x", lambda: critical_init_(net, normal(4, 7))),
        (InvalidValue, "q_star", lambda: critical_init_(net, q_star=0.0)),
        (InvalidType, "orthogonal", lambda: critical_init_(net, orthogonal=1)),
        (InvalidType, "seed", lambda: critical_init_(net, seed=1.5)),
        (InvalidValue, "not all zero", lambda: critical_init_(net, torch.zeros(4, 20, dtype=torch.float64))),
        (InvalidValue, "give x", lambda: critical_init_(made(residual))),
        (InvalidValue, "no layer with weights", lambda: critical_init_(nn.Softmax(1), normal(4, 3))),
        (InvalidValue, "lazy", lambda: critical_init_(nn.LazyLinear(3))),
    ):
        with pytest.raises(error, match=word):
            call()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_network_whose_signal_cannot_be_kept_is_refused_unchanged():
    class Cubes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2))

        def forward(self, x):
            for layer in self.layers:
                x = x + 1e3 * x.square().mean() * layer(x).detach() + layer(x) * 0
            return x

    net = made(Cubes)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InvalidValue, match=r"lasts|finite"):
        critical_init_(net, normal(1000, 16))  # of many particles few probes are drawn
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_report_is_short_and_begins_with_the_verdict():
    found = critical_init_(made(lambda: mlp(nn.Tanh)), normal(32, 20))
    assert isinstance(found, Initialisation)
    lines = str(found).splitlines()
    assert lines[0].startswith("critical: chi ")
    assert len(lines) < 20
    assert repr(found) == str(found)


# ---- what it is for


@pytest.mark.slow
def test_a_deep_network_trains_where_the_default_does_not():
    def trained(initialise):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = mlp(nn.Tanh, depth=60, width=48, inputs=8)
        x = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
        y = (x[:, 0] > 0).long()
        initialise(net, x)
        moving = [torch.zeros_like(parameter) for parameter in net.parameters()]
        for _ in range(60):  # SGD with momentum, written out: torch's optimisers take seconds to import
            loss = F.cross_entropy(net(x), y)
            for parameter, slope, move in zip(
                net.parameters(), torch.autograd.grad(loss, net.parameters()), moving, strict=True
            ):
                parameter.data.sub_(move.mul_(0.9).add_(slope), alpha=3e-3)
        return loss.item()

    assert trained(critical_init_) < 0.3
    assert trained(lambda net, x: None) > 0.68  # ln 2: nothing was learned


def test_wrapped_networks_are_refused_with_the_cure():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.ones(3, 4)
    with pytest.raises(InvalidType, match="before you script it"):
        critical_init_(torch.jit.script(net), x)
    with pytest.raises(InvalidType, match=r"its \.module"):
        critical_init_(nn.DataParallel(net), x)
    with torch.inference_mode(), pytest.raises(InvalidValue, match="outside of it"):
        critical_init_(net, x)


def test_weights_that_hooks_compute_are_tuned_and_those_of_fixed_gain_refused():
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))

    def stack(wrap):
        return nn.Sequential(*[nn.Sequential(wrap(nn.Linear(16, 16)), nn.Tanh()) for _ in range(3)])

    with pytest.raises(InvalidValue, match="fixed gain"):
        critical_init_(stack(nn.utils.spectral_norm), x)
    pruned = stack(lambda layer: prune.random_unstructured(layer, "weight", 0.5))
    masks = [mask.clone() for mask in pruned.buffers()]
    assert critical_init_(pruned, x).critical
    assert all(map(torch.equal, masks, pruned.buffers()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of the older function
        normed = stack(nn.utils.weight_norm)
    assert critical_init_(normed, x).critical


# ---- what no layer's weights can make up for


class BareMatrices(nn.Module):
    """Matrices that are no modules between two layers."""

    def __init__(self, gain, depth=30, width=64):
        super().__init__()
        self.enters, self.leaves = nn.Linear(8, width), nn.Linear(width, 3)
        self.bare = nn.ParameterList([nn.Parameter(torch.randn(width, width) * gain / 8) for _ in range(depth)])

    def forward(self, x):
        x = self.enters(x)
        for matrix in self.bare:
            x = torch.tanh(x @ matrix)
        return self.leaves(x)


@pytest.mark.parametrize(("gain", "does"), [(0.3, "loses"), (3.0, "blows up")])
def test_a_readout_does_not_make_up_for_what_bare_matrices_destroy(gain, does):
    net = made(lambda: BareMatrices(gain))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InvalidValue, match=rf"block 'leaves'.*{does} the signal.*'bare\.0'.* and 27 more"):
        critical_init_(net, normal(64, 8))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bare_matrices_that_keep_the_signal_are_no_matter():
    assert critical_init_(made(lambda: BareMatrices(1.0, depth=3)), normal(64, 8)).critical


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN, nn.GRUCell])
def test_recurrent_layers_are_refused_by_name(layer):
    net = made(lambda: nn.ModuleDict({"memory": layer(8, 8), "readout": nn.Linear(8, 2)}))
    with pytest.raises(InvalidValue, match=rf"layer 'memory' \({layer.__name__}\) is recurrent"):
        critical_init_(net, normal(4, 8))


def test_checkpoints_are_refused():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.readout = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), nn.Linear(8, 2)

        def forward(self, x):
            return self.readout(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False))

    with pytest.raises(InvalidValue, match=r"net uses torch.utils.checkpoint.*turn checkpointing off"):
        critical_init_(made(Checkpointed), normal(16, 8))

"""Diagnoses of networks whose propagation is known: by closed forms, by dense Jacobians, by what was broken in them."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mfoc.analysis.propagation import Finding, critical_init_, diagnose
from tests.architectures import seeded


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stack(activation, depth=10, width=256, entering=256, leaving=10):
    """Dense layers, each with its activation, in torch's default initialisation."""
    sizes = [entering] + [width] * (depth - 1) + [leaving]
    pairs = itertools.pairwise(sizes)

    def make():
        layers = [part for a, b in pairs for part in (nn.Linear(a, b), activation())]
        return nn.Sequential(*layers[:-1])

    return seeded(make)


def dense(net, gain, orthogonal=False, bias=0.0):
    """The same network with weights of variance gain / n_in, or orthogonal ones times sqrt(gain)."""
    generator = torch.Generator().manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            if orthogonal:
                nn.init.orthogonal_(layer.weight, gain=math.sqrt(gain), generator=generator)
            else:
                nn.init.normal_(layer.weight, std=math.sqrt(gain / layer.in_features), generator=generator)
            nn.init.normal_(layer.bias, std=bias, generator=generator)
    return net


def first_line(found):
    return str(found).splitlines()[0]


# ---- numbers


@pytest.mark.parametrize(
    ("activation", "chi"), [(nn.Tanh, 1 / 3), (nn.ReLU, 1 / 6), (nn.GELU, 1 / 12)], ids=["tanh", "relu", "gelu"]
)
def test_torchs_default_initialisation(activation, chi):
    """sigma_w^2 = 1/3, so chi = E phi'^2 / 3: at small q phi'(0)^2 / 3, of ReLU a half of it at any q."""
    found = diagnose(stack(activation), normal(32, 256), probes=4)
    assert found.finding is Finding.VANISHES
    assert first_line(found).startswith("gradients vanish after about")
    assert "critical_init_(net, x)" in first_line(found)
    for block in found.blocks[5:-1]:
        assert block.chi == pytest.approx(chi, rel=0.12)
        assert block.chi_backward == pytest.approx(chi, rel=0.15)
        assert block.weight_variance == pytest.approx(1 / 3, rel=0.05)
        assert block.chi_theory == pytest.approx(chi, rel=0.06)
        assert block.depth_scale == pytest.approx(-1 / math.log(block.chi))
    assert sum(block.chi for block in found.blocks[5:-1]) / 4 == pytest.approx(chi, rel=0.07)


def test_orthogonal_tanh_is_critical_at_small_activations():
    found = diagnose(dense(stack(nn.Tanh, 20), 1.0, orthogonal=True), 0.02 * normal(16, 256))
    assert found.finding is Finding.TRAINS
    assert first_line(found) == "trains at this depth: chi 0.999 over 18 blocks"
    assert all(block.chi_backward == pytest.approx(1, rel=2e-3) for block in found.blocks[1:-1])
    assert all(block.chi == pytest.approx(1, rel=2e-3) for block in found.blocks[1:-1])


def test_the_lengths_are_those_of_the_length_map():
    """q' = sigma_w^2 E tanh(sqrt(q) z)^2 + sigma_b^2, by a plain sum over the Gaussian."""
    found = diagnose(dense(stack(nn.Tanh, 6, width=1000, entering=200), 1.5, bias=0.3), normal(16, 200))
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    entering = float(normal(16, 200).square().mean())
    for block in found.blocks[:-1]:
        q = block.weight_variance * entering + block.bias_variance
        h = math.sqrt(q) * z
        entering = float((torch.tanh(h).square() * weight).sum())
        chi = block.weight_variance * float(((1 - torch.tanh(h).square()).square() * weight).sum())
        assert block.q_theory == pytest.approx(q, rel=1e-9)
        assert block.chi_theory == pytest.approx(chi, rel=1e-9)
        assert block.q == pytest.approx(q, rel=0.1)
        assert block.chi == pytest.approx(chi, rel=0.1)


def test_measures_against_dense_ones():
    """On a network small enough for its Jacobians, correlations and gradients to be written down."""
    net = stack(nn.Tanh, 3, width=6, entering=5, leaving=4)
    x, y = normal(3, 5), torch.tensor([0, 1, 3])
    found = diagnose(net, x, F.cross_entropy, targets=y, probes=600)
    h = [x]
    for k in (0, 2, 4):
        h.append(net[k : k + 2](h[-1]).detach())
    loss = F.cross_entropy(net(x), y)
    slopes = torch.autograd.grad(loss, list(net.parameters()))
    g = torch.autograd.functional.jacobian(lambda h: F.cross_entropy(h, y), h[3])
    for k in (2, 1, 0):
        block, layer = found.blocks[k], net[2 * k : 2 * k + 2]
        matrix = torch.autograd.functional.jacobian(layer, h[k]).reshape(h[k + 1].numel(), -1)
        assert block.chi == pytest.approx(float(matrix.square().sum()) / len(matrix), abs=5 * block.chi_error)
        assert block.chi_error < 0.06 * block.chi
        before = matrix.mT @ g.flatten()
        assert block.chi_backward == pytest.approx(float(before.square().sum() / g.square().sum()), rel=1e-9)
        assert block.arriving == pytest.approx(float(g.norm()), rel=1e-9)
        both = torch.cat([slope.flatten() for slope in slopes[2 * k : 2 * k + 2]])
        assert block.gradient == pytest.approx(float(both.norm()), rel=1e-9)
        pre = net[2 * k](h[k]).detach()
        cosines = F.cosine_similarity(pre[[0, 0, 1]], pre[[1, 2, 2]]).detach()
        assert block.c == pytest.approx(float(cosines.mean()), rel=1e-9)
        assert block.q == pytest.approx(float(pre.square().mean()), rel=1e-9)
        g = before.reshape(h[k].shape)
    assert found.loss == pytest.approx(loss.item())


def test_tokens():
    """Their correlation is the mean cosine within each input, and chi that of the whole layer."""
    layer = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True))
    net, x = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), normal(4, 5, 8)
    found = diagnose(net, x, probes=60)
    assert [block.name for block in found.blocks] == ["layers.0", "layers.1", "layers.2"]
    out = net.layers[0](x)
    cosines = [F.cosine_similarity(out[:, a], out[:, b]) for a in range(5) for b in range(a)]
    assert found.blocks[0].tokens == pytest.approx(torch.stack(cosines).mean().item(), rel=1e-9)
    matrix = torch.autograd.functional.jacobian(net.layers[0], x).reshape(160, 160)
    assert found.blocks[0].chi == pytest.approx(float(matrix.square().sum()) / 160, abs=5 * found.blocks[0].chi_error)


@pytest.mark.parametrize(("pre", "low", "high"), [(True, 1.0, 1.12), (False, 0.5, 1.08)], ids=["pre-LN", "post-LN"])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_transformers(pre, low, high, mode):
    """Also in evaluation mode, whose fast path has no derivative."""
    made = seeded(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=pre), 6, enable_nested_tensor=False
        )
    )
    found = diagnose(made.train(mode), normal(4, 12, 64), probes=4)
    assert found.finding is Finding.TRAINS
    assert len(found.blocks) == 6
    assert all(low < block.chi < high for block in found.blocks)
    assert all(math.isfinite(block.tokens) for block in found.blocks)


def test_zero_padding_is_in_the_theory():
    """Of six places on a line the two at the edges miss a third of a filter: (8/9)^2 of its taps lie over the image."""
    made = seeded(
        lambda: nn.Sequential(
            *[part for k in range(4) for part in (nn.Conv2d(96 if k else 8, 96, 3, padding=1), nn.Tanh())]
        )
    )
    found = diagnose(made, 0.1 * normal(4, 8, 6, 6))
    for block in found.blocks[1:]:
        assert block.chi_theory == pytest.approx((8 / 9) ** 2 / 3, rel=0.03)
        assert block.chi == pytest.approx(block.chi_theory, rel=0.05)
    assert found.blocks[0].q == pytest.approx(found.blocks[0].q_theory, rel=0.15)


# ---- verdicts


def test_what_explodes():
    found = diagnose(dense(stack(nn.Tanh, 20), 9.0), normal(16, 256))
    assert found.finding is Finding.EXPLODES
    assert all(block.chi > 1.5 for block in found.blocks[1:])


def test_a_block_that_breaks_is_named():
    net = dense(stack(nn.Tanh, 12), 1.0, orthogonal=True)
    with torch.no_grad():
        net[10].weight *= 0.1
    found = diagnose(net, 0.02 * normal(16, 256))
    assert found.finding is Finding.BREAKS
    assert first_line(found).startswith("block 6 (10): chi 0.01 where the others have 1")


def test_rank_collapse():
    """Attention alone: tokens become one token, doubly exponentially fast (Dong et al. 2021)."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.MultiheadAttention(16, 1, batch_first=True)

        def forward(self, x):
            return self.inside(x, x, x)[0]

    found = diagnose(seeded(lambda: nn.Sequential(*[Attention() for _ in range(5)])), normal(4, 6, 16))
    assert found.finding is Finding.TOKENS_COLLAPSE
    assert "tokens' correlation" in first_line(found)
    assert found.blocks[-1].tokens > 0.999


def test_dead_units():
    net = stack(nn.ReLU, 6, width=64, entering=64)
    with torch.no_grad():
        net[4].bias -= 10
        net[4].bias[:2] += 10
    found = diagnose(net, normal(16, 64))
    assert found.finding is Finding.DEAD
    assert first_line(found).startswith("dead: 96 % of the units of block 3 (4) are constant")


def test_what_is_not_finite():
    net = stack(nn.ReLU, 6, width=32, entering=32)
    with torch.no_grad():
        net[4].weight[0, 0] = math.nan
    found = diagnose(net, normal(8, 32))
    assert found.finding is Finding.NON_FINITE
    assert first_line(found).startswith("block 3 (4): its output is NaN or infinite, its input is finite")
    assert "x holds" in first_line(diagnose(stack(nn.ReLU, 4), normal(8, 256) * math.nan))


class Cut(nn.Module):
    """A detach in the middle."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)).detach())))


def test_where_no_gradient_passes():
    found = diagnose(seeded(Cut), normal(4, 8))
    assert found.finding is Finding.BLOCKED
    assert "what enters 'b' does not depend on x" in first_line(found)


def test_a_rounding_passes_no_gradient():
    net = stack(nn.Tanh, 6, width=64, entering=64)

    class Rounded(nn.Module):
        def forward(self, x):
            return torch.round(100 * x) / 100

    net[5] = Rounded()
    found = diagnose(net, normal(4, 64))
    assert found.finding is Finding.BLOCKED
    assert first_line(found).startswith("block 3 (4): no gradient passes")


def test_ordered_inputs_are_told_apart_no_more():
    """At chi near 1 in gradients, where biases outweigh what differs."""
    net = dense(stack(nn.ReLU, 4, width=128), 2.0, bias=200.0)
    found = diagnose(net, normal(8, 256))
    assert found.finding is Finding.INPUTS_COLLAPSE


class Bare(nn.Module):
    """Layers that are no modules."""

    def __init__(self, depth):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(16, 16) / 8 for _ in range(depth)])

    def forward(self, x):
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x


def test_a_single_block():
    assert diagnose(seeded(lambda: nn.Linear(4, 4)), normal(5, 4)).finding is Finding.ONE_BLOCK
    few = diagnose(seeded(lambda: Bare(2)), normal(5, 16))
    assert few.finding is Finding.ONE_BLOCK
    assert "cannot be told apart" in first_line(few)
    assert diagnose(seeded(lambda: Bare(20)), normal(5, 16)).finding is Finding.VANISHES


def test_few_blocks_train_and_the_limit_is_told():
    found = diagnose(stack(nn.Tanh, 4), normal(16, 256))
    assert found.finding is Finding.TRAINS
    assert "gradients would vanish after about 5 blocks like these" in first_line(found)


def test_a_readout_of_zeros_is_no_fault():
    net = dense(stack(nn.Tanh, 8), 1.0, orthogonal=True)
    nn.init.zeros_(net[-1].weight)
    assert diagnose(net, 0.02 * normal(8, 256)).finding is Finding.TRAINS


def test_padding_takes_nothing_from_weights_at_the_centre_tap():
    def make():
        return nn.Sequential(
            *[part for k in range(4) for part in (nn.Conv2d(96 if k else 8, 96, 3, padding=1), nn.Tanh())]
        )

    x = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net = seeded(make)
    critical_init_(net, x)  # delta-orthogonal
    for block in diagnose(net, x).blocks[1:]:
        assert block.chi_theory == pytest.approx(block.chi, rel=0.05)
        assert block.q_theory == pytest.approx(block.q, rel=0.1)


def _stack(depth=6):
    net = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(depth)], nn.Linear(16, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (part for part in net.modules() if isinstance(part, nn.Linear)):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / 16) ** 0.5)
            layer.bias.zero_()
    return net, torch.randn(32, 16, generator=generator)


def test_a_loss_that_is_not_finite_is_no_net_that_trains():
    net, x = _stack()
    for loss in (lambda out: (out * float("nan")).sum(), lambda out: (out * 0).sum().sqrt()):
        found = diagnose(net, x, loss)
        assert found.finding is Finding.NON_FINITE
        assert "look at the loss" in found.verdict


def test_a_dead_first_layer_is_named():
    net, x = _stack()
    with torch.no_grad():
        net[0][0].bias.fill_(-100)
    found = diagnose(net, x)
    assert found.finding is Finding.DEAD
    assert "block 1 (0)" in found.verdict


def test_inputs_of_zeros_are_not_blamed_on_the_network():
    net, x = _stack()
    with torch.no_grad():
        net[0][0].bias.fill_(0.1)
    assert diagnose(net, x * 0).verdict.startswith("x is zero everywhere")


def test_a_skip_past_all_layers_is_not_read_as_growth_in_the_first():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.deep = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()) for _ in range(12)])
            self.skip = nn.Linear(16, 16)

        def forward(self, x):
            return self.deep(x) + self.skip(x)

    assert diagnose(Beside(), torch.ones(8, 16) + torch.eye(8, 16)).finding is not Finding.BREAKS


# ---- what a mean over blocks would hide


class BareMatrices(nn.Module):
    """Matrices that are no modules, each with its activation, between two layers."""

    def __init__(self, depth=30, width=64, gain=0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.enters, self.leaves = nn.Linear(8, width), nn.Linear(width, 3)
        self.bare = nn.ParameterList(
            [nn.Parameter(torch.randn(width, width, generator=generator) * gain / width**0.5) for _ in range(depth)]
        )

    def forward(self, x):
        x = self.enters(x)
        for matrix in self.bare:
            x = torch.tanh(x @ matrix)
        return self.leaves(x)


@pytest.mark.parametrize("gain", [0.05, 0.3])
def test_matrices_that_no_module_applies_are_named_and_the_readout_is_not_blamed(gain):
    found = diagnose(seeded(lambda: BareMatrices(gain=gain)).float(), normal(64, 8).float())
    assert found.finding is Finding.VANISHES
    assert "'bare.0', 'bare.1', 'bare.2' and 27 more" in found.verdict
    assert "critical_init_" not in found.verdict


class Branch(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


def branches():
    return seeded(lambda: nn.Sequential(nn.Linear(8, 32), *[Branch(32) for _ in range(6)], nn.Linear(32, 3)))


def test_a_branch_whose_units_are_dead_is_told():
    net, x, y = branches(), normal(64, 8), torch.arange(64) % 3
    assert "exactly zero" not in diagnose(net, x, F.cross_entropy, targets=y).verdict
    nn.init.constant_(net[3].a.bias, -100.0)
    found = diagnose(net, x, F.cross_entropy, targets=y)
    assert "the gradient of '3.a.weight', '3.b.weight' is exactly zero" in first_line(found)


def test_a_loss_without_a_gradient_is_told():
    found = diagnose(branches(), normal(64, 8), lambda out: 0 * out.sum())
    assert found.finding is Finding.BLOCKED
    assert "look at the loss" in first_line(found)


def test_a_frozen_network_is_told():
    net = branches().requires_grad_(False)
    found = diagnose(net, normal(64, 8), F.cross_entropy, targets=torch.arange(64) % 3)
    assert "every parameter is frozen" in first_line(found)

"""What diagnose takes, refuses, leaves untouched and prints."""

import math

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import mfoc
from mfoc.analysis.propagation import diagnose
from mfoc.errors import InvalidType, InvalidValue
from tests.analysis.propagation.test_blocks import resnet
from tests.analysis.propagation.test_diagnosis import normal, stack
from tests.architectures import seeded

# ---- problems


def test_problems():
    """The stages are the blocks, J the loss."""
    net = stack(nn.Tanh, 3, width=6, entering=6, leaving=4)
    x, y = normal(5, 6), torch.tensor([0, 1, 2, 3, 0])
    found = diagnose(mfoc.from_module(net, F.cross_entropy), (x, y))
    plain = diagnose(net, x, F.cross_entropy, targets=y)
    assert [block.name for block in found.blocks] == [f"stage {t}" for t in range(5)]
    assert found.loss == pytest.approx(plain.loss)
    for k in range(3):
        assert found.blocks[2 * k].gradient == pytest.approx(plain.blocks[k].gradient)
        assert found.blocks[2 * k].q == pytest.approx(plain.blocks[k].q)
    product = found.blocks[0].chi_backward * found.blocks[1].chi_backward
    assert product == pytest.approx(plain.blocks[0].chi_backward)


def test_a_problem_where_it_stands():
    problem = mfoc.from_module(stack(nn.Tanh, 3, width=6, entering=6, leaving=4), F.cross_entropy)
    cloud = (normal(5, 6), torch.tensor([0, 1, 2, 3, 0]))
    larger = mfoc.tree.map(lambda leaf: 2 * leaf, problem.controls)
    one, other = diagnose(problem, cloud, probes=1), diagnose(problem, cloud, controls=larger, probes=1)
    assert other.blocks[0].chi == pytest.approx(4 * one.blocks[0].chi)


# ---- nothing changes, and the same is said again


def test_nothing_of_the_users_changes():
    net = seeded(resnet)
    net[7].weight.requires_grad_(False)
    net[7].bias.grad = torch.ones(2, dtype=torch.float64)
    x, state = normal(4, 3, 8, 8), torch.get_rng_state()
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    versions, input_before = {k: v._version for k, v in net.state_dict().items()}, x.clone()
    diagnose(net, x, lambda out: out.square().sum(1))
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())
    assert versions == {k: v._version for k, v in net.state_dict().items()}
    assert torch.equal(x, input_before)
    assert not x.requires_grad
    assert net.training
    assert not net[7].weight.requires_grad
    assert net[0].weight.grad is None
    assert torch.equal(net[7].bias.grad, torch.ones(2))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_drawn_from_the_seed():
    made = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 2)))
    x = normal(4, 6)
    one, again, other = diagnose(made, x), diagnose(made, x), diagnose(made, x, seed=1)
    assert str(one) == str(again)
    assert one.blocks[1].q != other.blocks[1].q


def test_hooks_of_the_users_run_and_stay():
    net = stack(nn.Tanh, 3, width=8, entering=8)
    plain = diagnose(net, normal(4, 8))
    handle = net[0].register_forward_hook(lambda module, args, output: 2 * output)
    found = diagnose(net, normal(4, 8))
    assert found.blocks[0].q == pytest.approx(4 * plain.blocks[0].q)
    assert list(net[0]._forward_hooks) == [handle.id]


@pytest.mark.slow
def test_what_has_no_derivative_by_autograd_is_explained():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=True)

    with pytest.raises(InvalidValue, match="use_reentrant"):
        diagnose(seeded(Checkpointed), normal(2, 3))


def test_without_gradient_mode_and_in_inference():
    net, x = stack(nn.Tanh, 4, width=8, entering=8), normal(4, 8)
    plain = str(diagnose(net, x))
    with torch.no_grad():
        assert str(diagnose(net, x)) == plain
    with torch.inference_mode():
        assert str(diagnose(net, x + 0)) == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    net, x = stack(nn.Tanh, 4, width=64, entering=64), normal(8, 64)
    exact = diagnose(net, x)
    found = diagnose(net.to(dtype), x.to(dtype))
    for a, b in zip(found.blocks, exact.blocks, strict=True):
        assert a.chi_backward == pytest.approx(b.chi_backward, rel=0.05)
        assert a.q == pytest.approx(b.q, rel=0.05)


def test_one_input_has_no_correlation():
    found = diagnose(stack(nn.Tanh, 4, width=8, entering=8), normal(1, 8))
    assert all(math.isnan(block.c) and math.isnan(block.constant) for block in found.blocks)
    assert "nan" not in str(found)


def test_the_figure():
    pytest.importorskip("matplotlib")
    net = stack(nn.Tanh, 5, width=16, entering=16)
    figure = diagnose(net, normal(8, 16), F.cross_entropy, targets=torch.arange(8)).plot()
    assert len(figure.axes) == 4
    assert "blocks" in figure.get_suptitle()
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert "χ by theory" in labels
    plain = diagnose(nn.Sequential(seeded(lambda: nn.Linear(3, 3))), normal(1, 3)).plot()
    assert not plain.axes[2].get_lines()


def test_many_blocks_print_in_a_few_lines():
    text = str(diagnose(stack(nn.Tanh, 60, width=8, entering=8), normal(4, 8)))
    assert len(text.splitlines()) < 32
    assert "..." in text


# ---- bad input


class Labels(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x).argmax(1)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ((nn.Linear(3, 3), normal(0, 3).float()), InvalidValue, "empty"),
        ((nn.Linear(3, 3), [1.0, 2.0]), InvalidType, "torch.as_tensor"),
        ((nn.Linear(3, 3), "x"), InvalidType, "expected a torch.Tensor"),
        ((nn.Linear, normal(2, 3)), InvalidType, "make an instance"),
        ((torch.tanh, normal(2, 3)), InvalidType, "Module"),
        ((nn.Tanh(), normal(2, 3)), InvalidValue, "no parameters"),
        ((nn.LazyLinear(3), normal(2, 3)), InvalidValue, "lazy"),
        ((nn.Linear(3, 3), normal(2, 4).float()), InvalidValue, "failed on x"),
        ((nn.Linear(3, 3), normal(2, 3)), InvalidValue, "failed on x"),  # float64 into float32
        ((Labels().double(), normal(2, 3)), InvalidType, "no derivative"),
        ((nn.Linear(3, 3).double(), normal(2, 3), F.mse_loss), InvalidValue, "targets="),
        ((nn.Linear(3, 3).double(), normal(2, 3), nn.MSELoss), InvalidType, "make an instance"),
        ((nn.Linear(3, 3).double(), normal(2, 3), 3), InvalidType, "loss"),
        ((nn.Linear(3, 3).double(), normal(2, 3), lambda out: 1.0), InvalidType, "derivative"),
    ],
)
def test_bad_input(arguments, kind, words):
    with pytest.raises(kind, match=words):
        diagnose(*arguments)


def test_bad_settings():
    net, x = nn.Linear(3, 3).double(), normal(2, 3)
    with pytest.raises(InvalidValue, match="probes"):
        diagnose(net, x, probes=0)
    with pytest.raises(InvalidValue, match="seed"):
        diagnose(net, x, seed=-1)
    with pytest.raises(InvalidValue, match="Problem"):
        diagnose(net, x, controls=[])
    problem = mfoc.from_module(nn.Sequential(nn.Linear(3, 3).double()), F.mse_loss)
    with pytest.raises(InvalidValue, match="costs of its own"):
        diagnose(problem, (x, x), F.mse_loss)

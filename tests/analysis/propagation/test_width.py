"""The coordinate check: what grows with width is told, what is in muP does not; against algebra and a plain loop."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from mfoc.analysis.propagation import mup_groups, mup_init_, width_check
from mfoc.analysis.propagation.width.check import _Fit
from mfoc.errors import InvalidType, InvalidValue

WIDTHS = (32, 64, 128, 256)
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)
SGD = functools.partial(torch.optim.SGD, lr=0.1)


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


def conv(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip


class Transformer(nn.Module):
    """One block; the number of heads grows, their size does not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(11, width)
        self.place = nn.Parameter(torch.randn(5, width))
        self.block = nn.TransformerEncoderLayer(width, width // 8, 2 * width, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.block(self.token(x) + self.place)[:, -1])
        return out


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 11, (16, 5), generator=generator), torch.randint(0, 11, (16,), generator=generator)


def verdicts(check):
    return {layer.name: layer.verdict for layer in check.layers}


def seeded_base(make, width):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(width)


def in_mup(make, x, optimizer, lr, *, kind, widths=WIDTHS, **options):
    base = seeded_base(make, widths[0])
    return width_check(
        lambda width: mup_init_(make(width), base),
        widths,
        x,
        optimizer,
        groups=lambda net: mup_groups(net, base, lr, kind),
        **options,
    )


# ---- the two parametrisations on nets of three kinds


def test_torchs_default_with_adam_grows_in_hidden_and_output_layers():
    check = width_check(mlp, WIDTHS, draw(16, 8), ADAM)
    assert check.standing == "not alike"
    assert (verdicts(check)["2"], verdicts(check)["4"]) == ("grows", "grows")
    assert check.verdict.startswith("not alike at every width: the change grows with width in '2' (width^0.")
    assert {(m.name, m.variance, m.rate) for m in check.mends if "weight" in m.name} == {
        ("0.weight", 0.0, 0.0), ("2.weight", 0.0, -1.0), ("4.weight", -1.0, -1.0),
    }  # fmt: skip


def test_mup_with_adam_is_alike():
    check = in_mup(mlp, draw(16, 8), torch.optim.Adam, 1e-3, kind="adam")
    assert set(verdicts(check).values()) == {"stable"}
    assert check.standing == "alike"
    assert all(mend.variance == 0 and mend.rate == 0 for mend in check.mends)
    assert "are those of muP" in str(check)


def test_torchs_default_with_sgd_stops_learning_in_the_input_layer():
    check = width_check(mlp, WIDTHS, draw(16, 8), SGD)
    assert verdicts(check)["0"] == "shrinks"
    assert {m.name: m.rate for m in check.mends if "weight" in m.name} == {"0.weight": 1, "2.weight": 0, "4.weight": -1}


@pytest.mark.parametrize("make", [conv, Transformer])
def test_mup_mends_what_adam_breaks(make):
    x, widths = (draw(4, 1, 5, 5), (16, 32, 64, 128)) if make is conv else (tokens(), (32, 64, 128))
    broken = width_check(make, widths, x, ADAM, seeds=3)
    assert broken.standing == "not alike"
    assert "grows" in verdicts(broken).values()
    mended = in_mup(make, x, torch.optim.Adam, 1e-3, kind="adam", widths=widths, seeds=5)
    assert "grows" not in verdicts(mended).values()
    for layer, before in zip(mended.layers, broken.layers, strict=True):
        assert abs(layer.slope.value) < 0.15
        assert layer.kind == before.kind


SMALL = {mlp: (draw(16, 8), WIDTHS), conv: (draw(4, 1, 5, 5), (16, 32, 64)), Transformer: (tokens(), (32, 64, 128))}


@pytest.mark.slow
@pytest.mark.parametrize("make", SMALL)
def test_mup_with_sgd(make):
    x, widths = SMALL[make]
    check = in_mup(make, x, torch.optim.SGD, 0.1, kind="sgd", widths=widths, seeds=16)
    assert not {"grows", "shrinks"} & set(verdicts(check).values())
    assert all(abs(layer.slope.value) < 0.15 for layer in check.layers)


# ---- numbers that are known


def linear_net(width: int) -> nn.Module:
    """f = W2 W1 x without biases, weights of variance 1/fan_in: the change in one small step is known."""
    net = nn.Sequential(nn.Linear(4, width, bias=False), nn.Linear(width, 1, bias=False)).double()
    for layer in net:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return net


def test_one_step_of_sgd_on_a_linear_net_has_the_powers_of_the_algebra():
    """dh = -lr W2^T d |x|^2 goes as width^-1/2; df = -lr d (|h|^2 + |W2|^2 |x|^2) as width."""
    x, y = draw(1, 4).double(), torch.full((1, 1), 50.0, dtype=torch.float64)
    optimizer = functools.partial(torch.optim.SGD, lr=1e-7)
    check = width_check(linear_net, (64, 128, 256, 512), (x, y), optimizer, steps=1, seeds=20)
    hidden, output = (layer.slope for layer in check.layers)
    assert hidden.low < -0.5 < hidden.high
    assert output.low < 1 < output.high
    assert max(hidden.high - hidden.low, output.high - output.low) < 0.3


def test_the_first_step_of_adam_moves_each_weight_by_the_rate():
    """On one sample each unit of the first layer moves by lr (sum |x| + 1), whatever the width."""
    x = draw(1, 8).double()
    adam = functools.partial(torch.optim.Adam, lr=1e-3, eps=1e-30)
    net = functools.partial(_double, lambda width: nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 1)))
    check = width_check(net, (4, 8), x, adam, steps=1, seeds=2)
    expected = 1e-3 * (x.abs().sum() + 1)
    assert torch.allclose(check.layers[0].changes, expected.expand(2, 2), rtol=1e-9)


def _double(make, width):
    return make(width).double()


def test_sizes_are_those_of_a_plain_loop():
    made, x, y = [], draw(6, 8), draw(6, 2)

    def make(width):
        made.append(mlp(width))
        return made[-1]

    kept = []
    optimizer = lambda params: kept.append([p.detach().clone() for p in params]) or SGD(params)  # noqa: E731
    check = width_check(make, (5, 9), (x, y), optimizer, steps=3, seeds=2)
    for index, weights in enumerate(kept):
        before = _plain_outputs(weights, x)
        for _ in range(3):
            weights = [w.detach().requires_grad_() for w in weights]
            loss = (_plain_outputs(weights, x)[-1] - y).square().mean()
            weights = [w - 0.1 * g for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]
        after = _plain_outputs(weights, x)
        for layer, old, new in zip(check.layers, before, after, strict=True):
            assert float(layer.starts[index // 2, index % 2]) == pytest.approx(
                old.square().mean().sqrt().item(), rel=1e-5
            )
            changed = (new - old).square().mean().sqrt().item()
            assert float(layer.changes[index // 2, index % 2]) == pytest.approx(changed, rel=1e-4)


def _plain_outputs(weights, x):
    outputs = []
    for k in range(0, len(weights), 2):
        x = x @ weights[k].T + weights[k + 1]
        outputs.append(x)
        x = x.relu()
    return outputs


def test_the_slope_of_one_seed_is_scipys_regression():
    widths, sizes = np.array([8, 16, 32, 64]), np.array([0.5, 0.9, 2.2, 3.1])
    expected = stats.linregress(np.log(widths), np.log(sizes))
    slope = _Fit(torch.tensor(widths).log(), 0.9)(torch.tensor(sizes)[None])
    half = stats.t.ppf(0.95, 2) * expected.stderr
    assert (slope.value, slope.low, slope.high) == pytest.approx(
        (expected.slope, expected.slope - half, expected.slope + half)
    )


def test_what_all_widths_of_a_seed_share_is_no_noise():
    sizes = torch.tensor([[1.0, 2.1, 3.9], [30.0, 61.0, 123.0]], dtype=torch.float64)
    slope = _Fit(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).log(), 0.95)(sizes)
    design = np.zeros((6, 3))
    design[:, 0], design[:3, 1], design[3:, 2] = np.log([1, 2, 4] * 2), 1, 1
    solution, residuals, *_ = np.linalg.lstsq(design, np.log(sizes.numpy().ravel()), rcond=None)
    error = math.sqrt(residuals[0] / 3 * np.linalg.inv(design.T @ design)[0, 0])
    assert (slope.value, slope.high) == pytest.approx((solution[0], solution[0] + stats.t.ppf(0.975, 3) * error))


# ---- what is told


def test_two_widths_and_one_seed_cannot_tell():
    check = width_check(mlp, (8, 16), draw(4, 8), ADAM, seeds=1)
    assert set(verdicts(check).values()) == {"cannot tell"}
    assert check.verdict.startswith("cannot tell whether '0', '2', '4' is stable")


def test_a_net_whose_width_does_not_matter_is_alike():
    class Side(nn.Module):
        """Grows in a part that is never used."""

        def __init__(self, width):
            super().__init__()
            self.body, self.unused = nn.Linear(8, 2), nn.Linear(width, width)

        def forward(self, x):
            return self.body(x)

    def make(width):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Side(width)

    check = width_check(make, (8, 16, 32), (draw(4, 8), draw(4, 2)), SGD, seeds=2)
    assert verdicts(check) == {"body": "stable"}
    assert check.standing == "alike"


def test_a_deviation_that_ignores_the_fan_in_is_told_before_the_first_step():
    def make(width):
        net = mlp(width)
        nn.init.normal_(net[2].weight, std=0.1)
        return net

    check = width_check(make, WIDTHS, draw(16, 8), functools.partial(torch.optim.Adam, lr=1e-9), steps=1)
    assert "before the first step the output grows with width in '2' (width^0." in check.verdict
    assert check.layers[1].start_slope.value == pytest.approx(0.5, abs=0.1)
    assert {mend.name: mend.variance for mend in check.mends}["2.weight"] == -1


def test_frozen_layers_are_unchanged():
    def make(width):
        net = mlp(width)
        net[0].requires_grad_(False)
        return net

    assert verdicts(width_check(make, (8, 16), draw(4, 8), SGD, seeds=1))["0"] == "unchanged"
    still = width_check(mlp, (8, 16), draw(4, 8), functools.partial(torch.optim.SGD, lr=0.0), seeds=1)
    assert still.verdict.startswith("cannot tell: no output changed")


def test_what_follows_the_last_layer_is_measured_as_the_net():
    check = width_check(lambda w: nn.Sequential(mlp(w), nn.Tanh()), (8, 16), draw(4, 8), SGD, seeds=1)
    assert [layer.name for layer in check.layers] == ["0.0", "0.2", "0.4", "(net)"]


def test_random_layers_draw_the_same_in_each_pass():
    def make(width):
        return nn.Sequential(nn.Linear(8, width), nn.Dropout(0.5), nn.Linear(width, 2))

    still = width_check(make, (8, 16), draw(4, 8), functools.partial(torch.optim.SGD, lr=0.0), seeds=1)
    assert set(verdicts(still).values()) == {"unchanged"}


def test_attention_whose_heads_grow_is_noted():
    class Attention(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.into, self.mix = nn.Linear(8, width), nn.MultiheadAttention(width, 2, batch_first=True)

        def forward(self, x):
            h = self.into(x)
            return self.mix(h, h, h)[0].mean(-1)

    assert "attention 'mix': the size of a head grows" in str(
        width_check(Attention, (8, 16), draw(2, 3, 8), ADAM, seeds=1)
    )


def test_a_tied_embedding_is_checked_and_its_mending_refused():
    class Tied(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.token, self.head = nn.Embedding(11, width), nn.Linear(width, 11)
            self.head.weight = self.token.weight

        def forward(self, x):
            return self.head(self.token(x).mean(1))

    check = width_check(Tied, (8, 16), tokens(), ADAM, seeds=1)
    assert "'token.weight' is shared by an embedding and another layer" in str(check)


def test_optimisers_that_evaluate_several_times_a_step():
    check = width_check(mlp, (8, 16), draw(4, 8), torch.optim.LBFGS, steps=1, seeds=1)
    assert check.mends[0].rate is None
    assert "not known to muP" in str(check)


def test_it_is_a_function_of_its_seed_and_leaves_everything_as_it_was():
    x, before = draw(4, 8).requires_grad_(), torch.get_rng_state()
    kept = x.detach().clone()
    inplace = lambda width: nn.Sequential(nn.ReLU(inplace=True), *mlp(width))  # noqa: E731
    with torch.no_grad():
        first, again, other = (width_check(inplace, (16, 8), x, SGD, seeds=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.layers[0].changes, again.layers[0].changes)
    assert not torch.equal(first.layers[0].changes, other.layers[0].changes)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(x, kept)
    assert x.grad is None
    assert first.widths == [8, 16]


def test_losses_and_targets_of_ones_own():
    seen = []

    def loss(output, target):
        seen.append(target)
        return (output - target).abs().sum(1)

    y = draw(4, 2)
    width_check(mlp, (8, 16), (draw(4, 8), y), SGD, loss=loss, steps=1, seeds=1)
    assert all(torch.equal(target, y) for target in seen)


def test_the_figure_has_a_line_for_each_layer():
    pytest.importorskip("matplotlib")
    check = width_check(mlp, (8, 16), draw(4, 8), ADAM, seeds=2)
    (axis,) = check.plot().axes
    lines = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert [line.get_label().split(":")[0] for line in lines] == ["0", "2", "4"]
    means = check.layers[1].changes.log().mean(0).exp()
    assert torch.allclose(torch.tensor(lines[1].get_ydata()), means)
    assert axis.get_title() == "Cannot tell if alike at every width" or axis.get_title().endswith("like at every width")


# ---- what is refused


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (InvalidValue, "expected two or more", {"widths": (8,)}),
        (InvalidValue, "expected two or more", {"widths": (8, 8)}),
        (InvalidType, r"widths\[1\] is 16.0", {"widths": (8, 16.0)}),
        (InvalidType, "widths is an int", {"widths": 8}),
        (InvalidType, "make_net is the Linear itself", {"make_net": nn.Linear(2, 2)}),
        (InvalidType, "returned an int", {"make_net": lambda width: width}),
        (InvalidValue, "ignores its width", {"make_net": lambda width: mlp(8)}),
        (InvalidValue, "no parameter that requires grad", {"make_net": lambda width: nn.Tanh()}),
        (InvalidValue, "differ in their layers", {"make_net": lambda w: nn.Sequential(*[nn.Linear(8, 8)] * (w // 8))}),
        (InvalidType, "optimizer is a str", {"optimizer": "adam"}),
        (InvalidType, "returned a list", {"optimizer": list}),
        (InvalidValue, "x is not finite", {"x": torch.full((4, 8), math.nan)}),
        (InvalidType, "x is a list", {"x": [1.0]}),
        (
            InvalidValue,
            "not finite at width 8 .*lower the learning rate",
            {"optimizer": functools.partial(SGD, lr=1e30)},
        ),
        (InvalidValue, "expected the same shape", {"x": (torch.ones(4, 8), torch.ones(4))}),
        (InvalidType, "loss returned a float", {"loss": lambda output, target: 1.0}),
        (InvalidValue, "steps is 0", {"steps": 0}),
        (InvalidValue, "confidence is 1", {"confidence": 1}),
    ],
)
def test_bad_input(error, match, change):
    arguments = {"make_net": mlp, "widths": (8, 16), "x": torch.ones(4, 8), "optimizer": SGD, "seeds": 1} | change
    with pytest.raises(error, match=match):
        width_check(**arguments)


def test_a_net_made_once_is_refused():
    nets = {width: mlp(width) for width in (8, 16)}
    with pytest.raises(InvalidValue, match="same net twice"):
        width_check(nets.__getitem__, (8, 16), torch.ones(4, 8), SGD, seeds=2)


def test_inference_mode_neither_stops_it_nor_changes_it():
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    plain = width_check(mlp, (8, 16), x, ADAM, seeds=2)
    with torch.inference_mode():
        inside = width_check(mlp, (8, 16), x.clone(), ADAM, seeds=2)
        made = x.clone()
    for other in (inside, width_check(mlp, (8, 16), made, ADAM, seeds=2)):
        for one, same in zip(other.layers, plain.layers, strict=True):
            assert torch.equal(one.changes, same.changes)


def test_scripted_nets_and_empty_data_are_refused_with_the_cure():
    x = torch.ones(4, 8)
    with pytest.raises(InvalidType, match="return the plain one"):
        width_check(lambda width: torch.jit.script(nn.Linear(8, width)), (8, 16), x, ADAM)
    with pytest.raises(InvalidValue, match="x is empty"):
        width_check(mlp, (8, 16), x[:0], ADAM)


def test_weights_that_are_not_finite_before_any_step_are_no_matter_of_the_learning_rate():
    def broken(width: int) -> nn.Module:
        net = mlp(width)
        with torch.no_grad():
            next(net.parameters()).view(-1)[0] = math.nan
        return net

    x = torch.randn(8, next(mlp(8).parameters()).shape[1])
    with pytest.raises(InvalidValue, match=r"weights .* are not finite before any step"):
        width_check(broken, (8, 16), x, functools.partial(torch.optim.SGD, lr=0.1))

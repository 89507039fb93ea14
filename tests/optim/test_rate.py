"""LearningRateControl: the best step along any direction, whatever the rate one begins with."""

import copy
import logging
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from mfoc.errors import InvalidType, InvalidValue
from mfoc.optim import LearningRateControl
from tests.problems import D

H = torch.diag(torch.tensor([4.0, 1.0, 0.2], dtype=D))


def bowl(x):
    return x @ H @ x / 2


def descend(control, x, loss, steps):
    """The iterates of a loop as a user writes it; the fresh batch is the same loss here."""
    found = []
    for _ in range(steps):
        control.optimizer.zero_grad()
        loss(x).backward()
        control.step(lambda: loss(x))
        found.append(x.detach().clone())
    return found


def start(*values):
    return torch.tensor(values or (1.0, -2.0, 3.0), dtype=D, requires_grad=True)


# ---- the law


@pytest.mark.parametrize("lr", [1e-6, 0.1, 30.0])
def test_without_noise_or_memory_it_is_steepest_descent_with_exact_line_search(lr):
    x = start()
    control = LearningRateControl(torch.optim.SGD([x], lr=lr), every=1, decay=1e-12, growth=1e6)
    found, at = descend(control, x, bowl, 12), start().detach()
    for iterate in found:
        g = H @ at
        at = at - (g @ g) / (g @ H @ g) * g
        assert torch.allclose(iterate, at, rtol=1e-9, atol=1e-12)


def test_the_rate_is_the_ratio_of_the_averages():
    """With memory, along directions that are given, on a loss whose slope and curvature along them are known."""
    x, weight, seen = start(0.0), [], []
    # f = -a x + b x^2 / 2 at x near 0, along d = -1: the descent is a, the curvature b.
    control = LearningRateControl(torch.optim.SGD([x], lr=1e-9), every=1, decay=0.8, growth=1e9)
    descent = curvature = 0.0
    for a, b in [(1.0, 2.0), (3.0, 1.0), (0.5, 4.0), (2.0, -3.0)]:
        with torch.no_grad():
            x.zero_()
        x.grad = torch.full_like(x, -1.0)
        control.step(lambda a=a, b=b: (-a * x + b * x * x / 2).sum() - 1e3 * (x.detach() != 0).sum())  # it always falls
        descent, curvature = 0.8 * descent + 0.2 * a, 0.8 * curvature + 0.2 * abs(b)
        weight.append(descent / curvature)
        seen.append(control.lr)
        assert x.item() == pytest.approx(control.lr, rel=1e-9)
    assert seen == pytest.approx(weight, rel=1e-9)


def test_the_rate_one_begins_with_does_not_matter():
    finals = []
    for lr in (1e-5, 1e-3, 1e-1, 10.0):
        x, generator = start(), torch.Generator().manual_seed(0)
        control = LearningRateControl(torch.optim.Adam([x], lr=lr), every=3)
        for _ in range(30):
            noise = torch.randn(2, 3, generator=generator, dtype=D)
            x.grad = H @ x.detach() + noise[0]
            control.step(lambda x=x, noise=noise: bowl(x) + noise[1] @ x)
        finals.append(torch.cat([x.detach(), torch.tensor([control.lr], dtype=D)]))
    for final in finals[1:]:
        assert torch.allclose(final, finals[0], rtol=1e-6)


def test_a_step_that_does_not_lower_the_loss_is_halved_until_it_does():
    """log cosh far out is a line: its Hessian is nearly zero there, and its greedy step enormous."""
    x = start(8.0)
    control = LearningRateControl(torch.optim.SGD([x], lr=1.0))
    before = x.item()
    descend(control, x, lambda x: x.cosh().log().sum(), 1)
    greedy = math.tanh(before) * math.cosh(before) ** 2
    halvings = math.log2(greedy / control.lr)
    assert halvings == pytest.approx(round(halvings), abs=1e-6)
    assert halvings > 10
    assert abs(x.item()) < before
    assert x.item() == pytest.approx(before - control.lr * math.tanh(before))


def test_after_the_first_the_rate_changes_by_growth_at_most():
    x = start(1.0)
    control = LearningRateControl(torch.optim.SGD([x], lr=1.0), every=1, decay=1e-12, growth=3.0)
    rates = []
    for curvature in (1.0, 100.0, 100.0, 100.0, 1.0, 1.0):
        descend(control, x, lambda x, c=curvature: c * x.square().sum() / 2, 1)
        with torch.no_grad():
            x.fill_(1.0)
        rates.append(control.lr)
    assert rates[0] == pytest.approx(1)
    factors = [b / a for a, b in pairwise(rates)]
    assert all(1 / 3 - 1e-9 <= factor <= 3 + 1e-9 for factor in factors)
    assert factors[0] == pytest.approx(1 / 3)
    assert factors[-1] > 1


def test_where_the_average_descent_is_negative_the_rate_stays():
    x = start(0.0)
    control = LearningRateControl(torch.optim.SGD([x], lr=0.25), every=1)
    for _ in range(20):
        x.grad = torch.ones_like(x)
        control.step(lambda: (-x).sum() + x.square().sum())
        with torch.no_grad():
            x.fill_(0.0)
        assert control.lr == 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_minimum_the_rate_is_not_halved_for_the_rounding_of_the_loss(dtype):
    x, curvature = start().detach().to(dtype).requires_grad_(), H.diag().to(dtype)
    control = LearningRateControl(torch.optim.Adam([x], lr=0.01), every=1)
    descend(control, x, lambda x: (x * curvature * x).sum() / 2 + 1000, 300)
    assert control.lr > 0.1
    assert float(x.detach().norm()) < 1e-5


def test_at_a_saddle_the_size_of_the_curvature_counts():
    x = start(1.0)
    control = LearningRateControl(torch.optim.SGD([x], lr=1e-3))
    descend(control, x, lambda x: -2 * x.square().sum() / 2, 1)
    assert x.item() == pytest.approx(1 + 0.5 * 2)


def test_between_measurements_it_is_the_optimiser():
    x, y = start(), start()
    control = LearningRateControl(torch.optim.Adam([x], lr=0.01), every=4)
    descend(control, x, bowl, 1)
    plain = torch.optim.Adam([y], lr=control.lr)
    plain.load_state_dict(copy.deepcopy(control.optimizer.state_dict()))
    with torch.no_grad():
        y.copy_(x)
    for _ in range(3):
        y.grad = H @ y.detach()
        plain.step()
        x.grad = H @ x.detach()
        control.step(lambda: pytest.fail("nothing is due"))
        assert torch.equal(x, y)


def test_rates_of_groups_keep_their_ratio():
    x, y = start(), start()
    control = LearningRateControl(torch.optim.SGD([{"params": [x], "lr": 1e-3}, {"params": [y], "lr": 4e-3}]))
    for p in (x, y):
        p.grad = H @ p.detach()
    control.step(lambda: bowl(x) + bowl(y))
    rates = [group["lr"] for group in control.optimizer.param_groups]
    assert rates[1] / rates[0] == pytest.approx(4)
    g = H @ start().detach()
    assert rates[0] == pytest.approx(float((g @ g) * 5 / ((g @ H @ g) * 17)))  # along (g, 4 g)


def accuracy(lr, seed):
    """Of a network for handwritten digits, after 600 steps of Adam, in per cent."""
    from sklearn.datasets import load_digits  # slow to import, and test_ranks imports this module in each process

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    generator = torch.Generator().manual_seed(seed)
    control = LearningRateControl(torch.optim.Adam(net.parameters(), lr=lr))
    loss = lambda rows: nn.functional.cross_entropy(net(x[rows]), y[rows])  # noqa: E731
    for _ in range(600):
        rows, fresh = torch.randint(1297, (2, 100), generator=generator)
        control.optimizer.zero_grad()
        loss(rows).backward()
        control.step(lambda fresh=fresh: loss(fresh))
    assert 1e-4 < control.lr < 1
    return 100 * float((net(x[1297:]).argmax(1) == y[1297:]).double().mean())


@pytest.mark.slow
def test_four_decades_of_rates_make_no_difference_to_a_network():
    found = [sum(accuracy(lr, seed) for seed in range(3)) / 3 for lr in (1e-5, 1e-3, 1e-1)]
    assert min(found) > 96
    assert max(found) - min(found) < 1


# ---- manners


def test_gradients_generators_and_other_parameters_are_left_alone():
    x, idle = start(), start()
    control = LearningRateControl(torch.optim.Adam([x, idle], lr=0.1))
    x.grad = H @ x.detach()
    kept, before = x.grad.clone(), torch.get_rng_state()
    with torch.no_grad():
        control.step(lambda: bowl(x))
    assert torch.equal(x.grad, kept)
    assert idle.grad is None
    assert torch.equal(idle, start())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    x = start()
    expected = descend(LearningRateControl(torch.optim.Adam([x], lr=0.01), every=3), x, bowl, 20)
    for cut in (0, 5, 6):
        x = start()
        first = LearningRateControl(torch.optim.Adam([x], lr=0.01), every=3)
        descend(first, x, bowl, cut)
        torch.save([first.state_dict(), first.optimizer.state_dict()], tmp_path / "saved.pt")
        saved = torch.load(tmp_path / "saved.pt", weights_only=True)
        second = LearningRateControl(torch.optim.Adam([x], lr=0.5), every=3)
        second.optimizer.load_state_dict(saved[1])
        second.load_state_dict(saved[0])
        assert second.state_dict() == first.state_dict()
        assert torch.equal(descend(second, x, bowl, 20 - cut)[-1], expected[-1])


def test_without_gradients_nothing_happens():
    x = start()
    control = LearningRateControl(torch.optim.Adam([x], lr=0.01))
    control.step(lambda: bowl(x))
    assert torch.equal(x, start())
    assert control.lr == 0.01


def test_attention_is_differentiated_twice():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    control = LearningRateControl(torch.optim.Adam(layer.parameters(), lr=1e-9))
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=D)
    loss = lambda: (layer(x) - 1).square().mean()  # noqa: E731
    before = loss()
    before.backward()
    control.step(loss)
    assert control.lr > 1e-4
    assert loss() < before


def test_what_else_sets_a_rate_is_refused_before_anything_moves():
    x, y = start(), start()
    control = LearningRateControl(torch.optim.Adam([x], lr=0.01), every=3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(control.optimizer, 0.5)
    descend(control, x, bowl, 1)
    schedule.step()
    at = x.detach().clone()
    with pytest.raises(InvalidValue, match="use no scheduler beside it"):
        control.step(lambda: bowl(x))
    assert torch.equal(x, at)

    control = LearningRateControl(torch.optim.Adam([y], lr=0.01))
    control.optimizer.add_param_group({"params": [x]})
    y.grad = H @ y.detach()
    with pytest.raises(InvalidValue, match="has 2 groups of parameters, and had 1"):
        control.step(lambda: bowl(y))
    assert torch.equal(y, start())


def test_a_loss_that_is_not_finite_changes_no_rate():
    x = start()
    control = LearningRateControl(torch.optim.Adam([x], lr=0.01))
    x.grad = H @ x.detach()
    control.step(lambda: bowl(x) * math.nan)
    assert control.lr == 0.01
    assert torch.allclose(x, start() - 0.01 * start().sign(), atol=1e-6)


def test_an_error_in_the_loss_leaves_the_step_of_the_optimiser():
    x = start()
    control = LearningRateControl(torch.optim.Adam([x], lr=0.01))
    x.grad = H @ x.detach()
    with pytest.raises(ZeroDivisionError):
        control.step(lambda: 1 // 0)
    assert torch.allclose(x, start() - 0.01 * start().sign(), atol=1e-6)


def test_sgd_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="mfoc"):
        LearningRateControl(torch.optim.Adam([start()], lr=0.1))
        assert not caplog.records
        LearningRateControl(torch.optim.SGD([start()], lr=0.1, momentum=0.9))
        assert "far below" in caplog.text


class Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope


@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [
        (lambda x: 3.0, InvalidType, "returned a float"),
        (lambda x: x, InvalidValue, r"shape \(3,\)"),
        (lambda x: bowl(x.detach()), InvalidValue, "without a graph"),
        (lambda x: Marked.apply(bowl(x)), InvalidValue, "no second derivative"),
    ],
    ids=["number", "vector", "detached", "once differentiable"],
)
def test_losses_that_are_refused(loss, error, says):
    x = start()
    control = LearningRateControl(torch.optim.Adam([x], lr=0.01))
    x.grad = H @ x.detach()
    with pytest.raises(error, match=says):
        control.step(lambda: loss(x))
    with pytest.raises(InvalidType, match="fresh is a Tensor"):
        control.step(bowl(x))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"optimizer": nn.Linear(1, 1)}, InvalidType, "optimizer is a Linear"),
        ({"every": 0}, InvalidValue, "every is 0"),
        ({"decay": 1.0}, InvalidValue, "decay is 1.0"),
        ({"growth": 1.0}, InvalidValue, "growth is 1.0"),
        ({"optimizer": torch.optim.Adam([start()], lr=0.0)}, InvalidValue, "lr is 0.0"),
        ({"optimizer": torch.optim.Adam([start()], lr=torch.tensor(0.1))}, InvalidType, "lr is tensor"),
    ],
    ids=["module", "every", "decay", "growth", "rate zero", "rate tensor"],
)
def test_what_is_refused(change, error, says):
    with pytest.raises(error, match=says):
        LearningRateControl(**{"optimizer": torch.optim.Adam([start()], lr=0.1)} | change)


def test_a_state_of_something_else_is_refused():
    control = LearningRateControl(torch.optim.Adam([start()], lr=0.1))
    for wrong in ({}, control.state_dict() | {"base": [1.0, 2.0]}, control.optimizer.state_dict()):
        with pytest.raises(InvalidValue, match="a control of as many groups"):
            control.load_state_dict(wrong)
    for wrong in ({"scale": math.nan}, {"scale": "1"}, {"base": [0.0]}, {"steps": 0.5}, {"curvature": -1.0}):
        with pytest.raises((InvalidType, InvalidValue), match="expected a"):
            control.load_state_dict(control.state_dict() | wrong)
    assert control.lr == 0.1


def test_a_first_rate_that_moves_nothing_is_refused():
    x = nn.Parameter(torch.ones(3))
    control = LearningRateControl(torch.optim.SGD([x], lr=1e-12))
    x.square().sum().backward()
    with pytest.raises(InvalidValue, match="1e-12 is lost to the rounding of the weights"):
        control.step(lambda: x.square().sum())
    x.grad = torch.zeros(3)
    control.step(lambda: x.square().sum())  # at a minimum there is nothing to do
    assert torch.equal(x, torch.ones(3))

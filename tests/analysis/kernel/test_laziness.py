"""How far the kernel turns in training, against kernels by plain Jacobians; and how that falls with width."""

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mfoc
from mfoc.analysis.kernel import drift_against_width, empirical_ntk, laziness
from mfoc.analysis.kernel.width import _fit
from mfoc.errors import InvalidType, InvalidValue
from tests.architectures import mlp_net, seeded
from tests.oracles.ntk import dense_ntk


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y, LABELS = normal(6, 3), normal(6, 2, seed=1), torch.tensor([0, 1, 1, 0, 1, 0])


def moved(net, size, seed=0):
    net = copy.deepcopy(net)
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.add_(size * normal(*p.shape, seed=seed + k))
    return net


NET = mlp_net()
PATH = [NET, moved(NET, 0.1), moved(NET, 0.3)]


def test_drift_turn_and_scale_are_those_of_the_kernels():
    found = laziness(NET, PATH, X)
    kernels, outputs = [dense_ntk(net, X).flatten() for net in PATH], [net(X).detach() for net in PATH]
    for t, kernel in enumerate(kernels):
        cosine = float(F.cosine_similarity(kernel, kernels[0], dim=0))
        assert float(found.drift[t]) == pytest.approx(float((kernel - kernels[0]).norm() / kernels[0].norm()))
        assert float(found.turn[t]) == pytest.approx(1 - cosine, abs=1e-12)
        assert float(found.scale[t]) == pytest.approx(float(kernel.norm() / kernels[0].norm()))
        assert float(found.moved[t]) == pytest.approx(float((outputs[t] - outputs[0]).norm() / outputs[0].norm()))
    assert found.alignment is None
    assert found.index == float(found.turn[-1])


def test_alignment_is_the_correlation_of_centred_kernels():
    found = laziness(NET, PATH, X, Y)
    one_hot = laziness(NET, PATH, X, LABELS)
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    for t, net in enumerate(PATH):
        kernel = centring @ dense_ntk(net, X).diagonal(dim1=2, dim2=3).sum(-1) @ centring
        for y, alignment in ((Y, found.alignment), (F.one_hot(LABELS).double(), one_hot.alignment)):
            target = centring @ y @ y.mT @ centring
            expected = torch.trace(kernel @ target) / (kernel.norm() * target.norm())
            assert float(alignment[t]) == pytest.approx(float(expected))


def test_the_kernel_of_a_linear_network_does_not_move():
    net = seeded(lambda: nn.Linear(3, 2))
    found = laziness(net, [net, moved(net, 10.0)], X)
    assert found.index == 0
    assert float(found.drift[-1]) == 0
    assert found.regime == "lazy"
    assert str(found).startswith("lazy: index 0 on a scale from 0 (lazy) to 1 (rich)")


def test_a_kernel_that_is_scaled_has_not_turned():
    """f = a b x with a and b doubled: Theta = (a^2 + b^2) x x' is four times as large, and the same features."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    later = copy.deepcopy(net)
    with torch.no_grad():
        for p in later.parameters():
            p.mul_(2)
    found = laziness(net, [net, later], normal(4, 1))
    assert float(found.drift[-1]) == pytest.approx(3)
    assert float(found.scale[-1]) == pytest.approx(4)
    assert found.index < 1e-15
    assert found.regime == "lazy"


def test_features_that_are_replaced_are_rich():
    """A ReLU unit that is active on the first sample, and later on the second one alone: kernels at right angles."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    later = copy.deepcopy(net)
    with torch.no_grad():
        later[0].weight.fill_(-1.0)
    found = laziness(net, [net, later], torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    assert found.index == pytest.approx(1)
    assert found.regime == "rich"


def test_between_and_untrained():
    assert laziness(NET, [NET, copy.deepcopy(NET)], X).regime == "untrained"
    between = laziness(NET, [NET, moved(NET, 0.12)], X)
    assert 0.01 < between.index < 0.1
    assert between.regime == "between"
    assert "between" in str(between)


def test_a_trajectory_is_given_in_many_ways():
    problem = mfoc.from_module(NET, nn.MSELoss())
    solver = mfoc.Gradient(functools.partial(torch.optim.SGD, lr=0.3))
    iterates = list(itertools.islice(mfoc.iterate(problem, solver, (X, Y)), 4))
    controls = [iterate.controls for iterate in iterates]
    modules = [mfoc.to_module(NET, iterate) for iterate in iterates]
    states = [module.state_dict() for module in modules]
    expected = laziness(NET, modules, X)
    assert float(expected.drift[-1]) > 0
    for trajectory in (iterates, controls, states, [modules[0], states[1], controls[2], iterates[3]]):
        assert torch.equal(laziness(NET, trajectory, X).drift, expected.drift)
    solution = mfoc.solve(problem, solver, (X, Y), steps=3)
    assert torch.equal(laziness(NET, [NET, solution], X).drift[-1], laziness(NET, [NET, solution.last], X).drift[-1])


def test_the_trace_is_enough_where_it_is_asked_for():
    found = laziness(NET, PATH, X, trace=True, batch_size=2)
    kernels = [empirical_ntk(net, X, trace=True) for net in PATH]
    expected = [float((kernel - kernels[0]).norm() / kernels[0].norm()) for kernel in kernels]
    assert found.drift.tolist() == pytest.approx(expected)


# ---- width


class NTKParametrised(nn.Module):
    """f = a tanh(w x) / width^power with standard normal weights: 1/2 is the NTK's power, 1 that of mean field."""

    def __init__(self, width, power=0.5):
        super().__init__()
        self.first, self.last = nn.Linear(3, width, bias=False), nn.Linear(width, 1, bias=False)
        self.scale = width**power
        nn.init.normal_(self.first.weight)
        nn.init.normal_(self.last.weight)
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.first(x))) / self.scale


def train(net, lr=0.3, steps=25):
    for _ in range(steps):
        slopes = torch.autograd.grad(F.mse_loss(net(X), Y[:, :1]), list(net.parameters()))
        with torch.no_grad():
            for p, slope in zip(net.parameters(), slopes, strict=True):
                p -= lr * slope


@pytest.mark.slow
def test_drift_falls_as_one_over_width_in_ntk_parametrisation():
    short = functools.partial(train, lr=0.1, steps=8)  # the law is of small drifts
    found = drift_against_width(NTKParametrised, [128, 512, 2048], short, X, seeds=8)
    assert found.slope == pytest.approx(-1, abs=0.2)
    assert found.interval[0] < -1 < found.interval[1] < -0.5
    assert str(found).startswith("lazier with width: drift ~ width^-")


@pytest.mark.slow
def test_drift_does_not_fall_in_mean_field_parametrisation():
    """With a learning rate in proportion to the width, the features move as much at any width."""
    found = drift_against_width(
        functools.partial(NTKParametrised, power=1.0),
        [64, 256, 512],
        lambda net: train(net, 0.3 * net.scale),
        X,
        seeds=5,
    )
    assert found.slope == pytest.approx(0, abs=0.15)
    assert float(found.drifts.min()) > 0.1


def test_the_power_law_is_the_least_squares_line():
    logs, values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), normal(3, 4)
    slope, half = _fit(logs, values, 0.9)
    expected = stats.linregress(logs.repeat_interleave(4).numpy(), values.flatten().numpy())
    assert slope == pytest.approx(expected.slope)
    assert half == pytest.approx(expected.stderr * stats.t.ppf(0.95, 10))


def test_widths_are_trained_from_seeds_that_are_put_back():
    random = torch.get_rng_state()
    run = functools.partial(drift_against_width, NTKParametrised, [4, 8], functools.partial(train, steps=2), X, seeds=2)
    one, again, other = run(), run(), run(seed=1)
    assert torch.equal(one.drifts, again.drifts)
    assert not torch.equal(one.drifts, other.drifts)
    assert torch.equal(torch.get_rng_state(), random)
    assert one.drifts.shape == (2, 2)


def test_training_may_return_what_it_made():
    def returns(net):
        later = copy.deepcopy(net)
        train(later, steps=2)
        return later.state_dict()

    widths, in_place = [4, 8], functools.partial(train, steps=2)
    found = drift_against_width(NTKParametrised, widths, returns, X, seeds=2)
    assert torch.equal(found.drifts, drift_against_width(NTKParametrised, widths, in_place, X, seeds=2).drifts)


# ---- how it is shown, and what is refused


def test_results_are_printed_in_a_few_words_and_drawn():
    found = laziness(NET, PATH, X, LABELS)
    assert len(str(found).splitlines()) == 2
    assert "alignment with the targets" in str(found)
    assert "tensor(" not in repr(found)
    pytest.importorskip("matplotlib")
    assert len(found.plot().axes[0].lines) == 3
    assert len(laziness(NET, PATH, X).plot().axes[0].lines) == 2
    widths = drift_against_width(NTKParametrised, [4, 8], functools.partial(train, steps=2), X, seeds=2)
    assert widths.plot().axes[0].get_xscale() == "log"
    assert "width  drift" in str(widths)


@pytest.mark.parametrize(
    ("trajectory", "kind", "match"),
    [
        ([NET], InvalidValue, "trajectory has 1 entries"),
        (NET, InvalidType, "trajectory is a Sequential"),
        ([NET, NET], InvalidValue, "give copies"),
        ([NET, 3], InvalidType, r"trajectory\[1\] is an int"),
        ([NET, {"0.weight": torch.zeros(2, 2)}], InvalidValue, r"trajectory\[1\]: '0.weight' \(2, 2\) does not belong"),
        ([NET, {"other": torch.zeros(2, 2)}], InvalidValue, "'other'"),
        ([NET, {}], InvalidValue, "an empty state dict"),
        ([NET, [{}, {}]], InvalidValue, r"trajectory\[1\]: controls do not belong"),
        ([NET, seeded(lambda: nn.Linear(3, 4))], InvalidValue, r"trajectory\[1\] is of another architecture"),
    ],
)
def test_bad_trajectories_are_refused(trajectory, kind, match):
    with pytest.raises(kind, match=match):
        laziness(NET, trajectory, X)


def test_a_training_that_diverged_is_told_with_its_place():
    broken = copy.deepcopy(PATH[0])
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(InvalidValue, match=r"trajectory\[1\]: the output of net is not finite"):
        laziness(PATH[0], [PATH[0], broken], X)


def test_outputs_that_begin_at_zero_are_said_to_leave_it():
    start = nn.Linear(X.shape[1], 1, bias=False)
    nn.init.zeros_(start.weight)
    end = copy.deepcopy(start)
    nn.init.ones_(end.weight)
    found = laziness(start, [start, end], X.to(start.weight.dtype))
    assert "outputs moved away from zero" in str(found)
    assert found.regime == "lazy"


def test_bad_targets_and_samples_are_refused():
    with pytest.raises(InvalidValue, match="y has shape"):
        laziness(NET, PATH, X, Y[:3])
    with pytest.raises(InvalidType, match="y is a list"):
        laziness(NET, PATH, X, [1])
    with pytest.raises(InvalidValue, match="at least one sample"):
        laziness(NET, PATH, X[:0])


@pytest.mark.parametrize(
    ("make", "widths", "training", "options", "match"),
    [
        (NTKParametrised, [4], train, {}, "two or more that differ"),
        (NTKParametrised, [4, 0], train, {}, "width is 0"),
        (NTKParametrised, 4, train, {}, "widths is an int"),
        (NTKParametrised, [4, 8], None, {}, "train is a NoneType"),
        (NTKParametrised, [4, 8], train, {"seeds": 1}, "no error to judge a slope by"),
        (NTKParametrised, [4, 8], lambda net: None, {"seeds": 2}, "did not move"),
        (lambda width: 3, [4, 8], train, {}, "returned an int"),
    ],
)
def test_bad_widths_are_refused(make, widths, training, options, match):
    with pytest.raises((InvalidType, InvalidValue), match=match):
        drift_against_width(make, widths, training, X, **options)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 2)), r"parameter '0.weight' is \(9, 3\) there"),
        (lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), "module '1' is ReLU there and Tanh in"),
    ],
)
def test_a_module_of_another_architecture_is_refused(other, what):
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))
    with pytest.raises(InvalidValue, match=rf"trajectory\[1\] is of another architecture than net: {what}"):
        laziness(net, [net, seeded(other)], normal(4, 3))

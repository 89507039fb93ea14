"""Sharpness against dense Hessians, and the edge of stability against gradient descent itself."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.analysis.noise import sharpness
from mfoc.analysis.noise.samples import Samples
from mfoc.analysis.noise.spectrum import Hessian
from mfoc.errors import InvalidValue, MissingExtra
from tests.analysis.noise.cases import Location, classifier, dense_hessian, normal, quadratic
from tests.architectures import seeded


def wide(n: int = 40):
    """More parameters than whose Hessian is formed."""
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)))
    return net, normal(n, 6), torch.arange(n) % 3


@pytest.fixture
def curvlinops():
    return pytest.importorskip("curvlinops")


def test_of_a_small_network_it_is_the_dense_spectrum():
    net, x, y = classifier()
    expected = torch.linalg.eigvalsh(dense_hessian(net, x, y))
    found = sharpness(net, F.cross_entropy, (x, y), top=4)
    assert torch.allclose(found.eigenvalues, expected.flip(0)[:4], atol=1e-12)
    assert found.trace == pytest.approx(float(expected.sum()))


@pytest.mark.parametrize("batch_size", [None, 7])
def test_of_a_larger_one_lanczos_finds_the_same(curvlinops, batch_size):
    net, x, y = wide()
    expected = torch.linalg.eigvalsh(dense_hessian(net, x, y))
    found = sharpness(net, F.cross_entropy, (x, y), top=3, tol=1e-8, batch_size=batch_size)
    assert found.size == 303
    assert torch.allclose(found.eigenvalues, expected.flip(0)[:3], rtol=1e-6)
    assert float(found.errors.max()) < 1e-6
    assert abs(found.trace - float(expected.sum())) < 5 * found.trace_error < float(expected.sum())


def test_products_are_those_of_curvlinops(curvlinops):
    net, x, y = wide()
    hessian = Hessian(Samples.of(net, F.cross_entropy, (x, y), batch_size=9))
    other = curvlinops.HessianLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), [(x, y)])
    v = normal(303, 2)
    assert torch.allclose(hessian @ v, other @ v, atol=1e-12)
    assert torch.allclose(hessian @ v[:, 0], (hessian @ v)[:, 0])


def test_in_layer_norm_products_are_those_of_finite_differences():
    """In the weights of LayerNorm jvp of jacrev, and so torch.func.hessian, is wrong in torch 2.15."""
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)))
    data = normal(12, 4), torch.arange(12) % 3
    samples = Samples.of(net, F.cross_entropy, data)
    v, h = normal(1, samples.size)[0], 1e-5
    start, slopes = nn.utils.parameters_to_vector(net.parameters()).detach(), []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * h * v, net.parameters())
        slopes.append(Samples.of(net, F.cross_entropy, data).gradient())
    assert torch.allclose(Hessian(samples) @ v, (slopes[0] - slopes[1]) / (2 * h), atol=1e-7)


class _Square(torch.autograd.Function):
    """It has no rule for torch.func."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0] * slope


def test_a_function_that_torch_func_does_not_know_is_no_obstacle(curvlinops):
    class Own(nn.Sequential):
        def forward(self, x):
            return self[1](_Square.apply(self[0](x)))

    class Plain(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).square())

    own, plain = (seeded(lambda: kind(nn.Linear(4, 40), nn.Linear(40, 3))) for kind in (Own, Plain))  # noqa: B023
    data = normal(12, 4), torch.arange(12) % 3
    found, expected = (sharpness(net, F.cross_entropy, data, top=2, tol=1e-8) for net in (own, plain))
    assert torch.allclose(found.eigenvalues, expected.eigenvalues)


def test_a_problem_is_its_network_and_the_seed_decides(curvlinops):
    net, x, y = wide()
    state = torch.get_rng_state()
    one = sharpness(net, F.cross_entropy, (x, y), seed=3)
    other = sharpness(mfoc.from_module(net, F.cross_entropy), None, (x, y), seed=3)
    assert torch.allclose(one.eigenvalues, other.eigenvalues)
    assert one.trace == pytest.approx(other.trace)
    again = sharpness(net, F.cross_entropy, (x, y), seed=3)
    assert torch.equal(one.eigenvalues, again.eigenvalues)
    assert one.trace == again.trace != sharpness(net, F.cross_entropy, (x, y), seed=4).trace
    assert torch.equal(torch.get_rng_state(), state)


def test_it_follows_the_dtype(curvlinops):
    net, x, y = wide()
    found = sharpness(net.float(), F.cross_entropy, (x.float(), y))
    assert found.eigenvalues.dtype == torch.float32
    assert found.value == pytest.approx(sharpness(net.double(), F.cross_entropy, (x, y)).value, rel=1e-3)


def test_without_curvlinops_it_says_what_to_install(monkeypatch):
    net, x, y = wide()
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(MissingExtra, match=r"pip install .*curvlinops-for-pytorch"):
        sharpness(net, F.cross_entropy, (x, y))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("share", "regime"), [(0.85, "stable"), (1.15, "unstable")])
def test_heavy_ball_descent_diverges_just_where_the_ratio_is_above_one(momentum, share, regime):
    h = torch.tensor([[0.3, 5.0]], dtype=torch.float64)
    lr = share * 2 * (1 + momentum) / 5.0
    net, data = Location(torch.ones(2).double()), (torch.zeros(2, 2).double(), h.expand(2, 2))
    found = sharpness(net, quadratic, data, lr=lr, momentum=momentum)
    assert found.ratio == pytest.approx(share)
    assert found.regime == regime
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    for _ in range(300):
        optimizer.zero_grad()
        quadratic(net(data[0]), data[1]).mean().backward()
        optimizer.step()
    assert bool(net.u.detach().norm() > 1e3) == (regime == "unstable")


def test_training_by_gradient_descent_comes_to_the_edge():
    """Progressive sharpening up to 2 / lr, on a two-layer linear network that starts with unequal layers."""
    net = seeded(lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)))
    x = torch.ones(2, 1, dtype=torch.float64)
    with torch.no_grad():
        net[0].weight.fill_(3.0)
        net[1].weight.fill_(0.1)
    y, lr = torch.full((2, 1), 4.0).double(), 2 / 17.0
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(2000):
        optimizer.zero_grad()
        F.mse_loss(net(x), y).div(1).backward()
        optimizer.step()
    found = sharpness(net, F.mse_loss, (x, y), lr=lr)
    assert found.regime == "edge"
    assert "at the edge of stability" in found.verdict


def test_without_a_rate_it_says_the_largest_stable_one():
    h = torch.tensor([[1.0, 5.0]], dtype=torch.float64).expand(2, 2)
    found = sharpness(Location(torch.ones(2).double()), quadratic, (torch.zeros(2, 2).double(), h), top=2)
    assert found.eigenvalues.tolist() == pytest.approx([5, 1])
    assert found.regime == ""
    assert "up to lr = 0.4" in found.verdict
    flat = sharpness(Location(torch.ones(2).double()), quadratic, (torch.zeros(2, 2).double(), -h), lr=1.0)
    assert "in no direction" in flat.verdict


@pytest.mark.parametrize("setting", [{"top": 0}, {"top": 28}, {"lr": 0.0}, {"momentum": 1.0}, {"tol": 0.0}], ids=str)
def test_settings_are_refused(setting):
    net, x, y = classifier()
    with pytest.raises(InvalidValue):
        sharpness(net, F.cross_entropy, (x, y), **setting)


def test_half_precision_is_refused():
    net, x, y = classifier()
    with pytest.raises(InvalidValue, match="float32 at least"):
        sharpness(net.bfloat16(), F.cross_entropy, (x.bfloat16(), y))


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_a_hessian_of_low_rank_has_its_exact_trace(curvlinops, rank):
    """Of a linear network the Hessian is 2 x'x / n; XTrace and Lanczos stop where it has fewer directions than they."""
    x = torch.zeros(8, 300, dtype=torch.float64)
    x[:, :rank] = normal(8, rank)
    net = seeded(lambda: nn.Linear(300, 1, bias=False))
    found = sharpness(net, F.mse_loss, (x, normal(8, 1)))
    expected = torch.linalg.eigvalsh(2 * x.mT @ x / 8)
    assert found.value == pytest.approx(float(expected[-1]), abs=1e-12)
    assert found.trace == pytest.approx(float(expected.sum()), abs=1e-12)
    assert found.trace_error < 1e-12

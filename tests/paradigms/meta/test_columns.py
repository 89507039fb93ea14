"""Convolutions as products of patches, and batch norm with channels last: values and derivatives of plain torch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import mfoc
from mfoc import InvalidValue
from paradigms.meta import chains, maml, tasks
from paradigms.meta.columns import Patch, arranged, by_columns, convolve_last, in_place_of
from paradigms.meta.layers import normalise_last
from paradigms.meta.stacked import StackedNetwork

TASKS, SHOTS = 3, 4
PLAIN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def orders(function, leaves, order=3):
    """The value, a gradient that mixes all of it, and the gradients of that in turn."""
    value = function(*leaves)
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view(value.shape)
    found, scalar = [value], (weights * value.tanh()).sum()
    for _ in range(order):
        slopes = torch.autograd.grad(scalar, leaves, create_graph=True, materialize_grads=True)
        found += slopes
        scalar = sum((leaf * slope.sin()).sum() for leaf, slope in zip(leaves, slopes, strict=True))
    return found


def close(mine, plain):
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def leaves(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@st.composite
def geometries(draw):
    axes = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    patch, sizes = Patch(each(1, 3), each(1, 4), each(0, 2), each(1, 2)), each(2, 6)
    assume(min(patch.positions(sizes)) > 0)
    return patch, sizes


@settings(max_examples=15, deadline=None, derandomize=True)
@given(geometries(), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_a_convolution_by_columns_is_torchs_to_the_second_derivative(geometry, channels, out, biased):
    (patch, sizes), many = geometry, 2
    shapes = [(many, 2, *sizes, channels), (many, out, channels, *patch.kernel), *[(many, out)] * biased]

    def mine(x, w, b=None):
        return convolve_last(x, w, b, patch)

    def plain(x, w, b=None):
        convolve = PLAIN[len(sizes)]
        return torch.stack([
            convolve(x[t].movedim(-1, 1), w[t], b if b is None else b[t], patch.stride, patch.padding, patch.dilation)
            .movedim(1, -1) for t in range(many)
        ])  # fmt: skip

    given_ = leaves(*shapes)
    close(orders(mine, given_, 2), orders(plain, given_, 2))


@pytest.mark.parametrize("sizes", [(), (5,), (2, 3), (2, 1, 2)])
def test_batch_norm_with_channels_last_is_torchs_to_the_third_derivative(sizes):
    def plain(x, w, b):
        rows = x.flatten(1, -2)
        var, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
        return ((rows - mean) / (var + 1e-3).sqrt() * w.unsqueeze(1) + b.unsqueeze(1)).view(x.shape)

    given_ = leaves((TASKS, SHOTS, *sizes, 2), (TASKS, 2), (TASKS, 2))
    close(orders(lambda *a: normalise_last(*a, 1e-3), given_), orders(plain, given_))


def test_weights_keep_their_values_and_lie_as_products_read_them():
    weight = torch.randn(5, 4, 3, 2)
    placed = in_place_of(weight)
    assert torch.equal(placed, weight)
    assert not placed.is_contiguous()
    assert arranged(placed.expand(7, *placed.shape)).flatten(1, -2).data_ptr() == placed.data_ptr()


@pytest.mark.parametrize(
    ("kernel", "stride", "out", "whether"),
    [((3, 3), (2, 2), 32, True), ((1, 1), (1, 1), 16, True), ((3, 3), (1, 1), 32, False), ((3, 3), (2, 2), 8, False)],
)
def test_the_rule_knows_the_shape_only(kernel, stride, out, whether):
    assert by_columns(Patch(kernel, stride, (0, 0), (1, 1)), out) is whether


def frozen(norm):
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    return norm.eval()


NETS = {
    "strides": lambda: [nn.Conv2d(2, 16, 3, 2, 1), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(),
                        nn.Conv2d(16, 17, 3, (2, 3), (0, 1), bias=False), nn.Tanh()],
    "pools": lambda: [nn.Conv2d(2, 16, 2, 2), nn.MaxPool2d(2, 1), nn.Conv2d(16, 16, 1), nn.AvgPool2d(2)],
    "back to planes": lambda: [nn.Conv2d(2, 16, 3, 2), nn.GELU(), nn.Conv2d(16, 8, 2, groups=2), nn.GroupNorm(2, 8)],
    "still norm": lambda: [nn.Conv2d(2, 16, 3, 2), frozen(nn.BatchNorm2d(16)), nn.Softplus()],
    "norm without weights": lambda: [nn.Conv2d(2, 16, 3, 2),
                                     nn.BatchNorm2d(16, affine=False, track_running_stats=False), nn.Tanh()],
    "layer norm": lambda: [nn.Conv2d(2, 16, 3, 2), nn.LayerNorm([16, 3, 3]), nn.ReLU()],
}  # fmt: skip


def made(name, dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(*NETS[name](), nn.Flatten(), nn.LazyLinear(3)).to(dtype)
    x = torch.randn(TASKS, SHOTS, 2, 7, 8, dtype=dtype)
    net(x[0])
    y = torch.randint(3, (TASKS, SHOTS))
    return net, tasks((x, y), (x.flip(0), y.flip(0)))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_gradient_of_maml_is_that_of_a_loop_over_tasks(name, first_order):
    net, cloud = made(name)
    phi = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}

    def loss(weights, x, y):
        return F.cross_entropy(torch.func.functional_call(net, weights, (x,)), y)

    (x, y), (a, b) = cloud.data["support"], cloud.data["query"]
    total = 0.0
    for t in range(TASKS):
        own = dict(phi)
        for _ in range(2):
            slopes = torch.autograd.grad(loss(own, x[t], y[t]), list(own.values()), create_graph=not first_order)
            own = {n: p - 0.1 * s for (n, p), s in zip(own.items(), slopes, strict=True)}
        total = total + loss(own, a[t], b[t]) / TASKS
    plain = torch.autograd.grad(total, list(phi.values()))

    formulation = maml(net, F.cross_entropy, cloud, inner_steps=2, inner_lr=0.1, first_order=first_order)
    assert StackedNetwork(net).layers
    assert chains.has_kernel(net[0])
    for recompute in (False, True):
        problem = formulation.problem
        found = mfoc.evaluate(problem, problem.controls, cloud, recompute=recompute).gradient["phi"]
        close([found[n] for n in phi], plain)


def test_the_same_run_has_the_same_bits():
    net, cloud = made("strides", torch.float32)
    formulation = maml(net, F.cross_entropy, cloud, inner_steps=1, inner_lr=0.1)
    first, second = (mfoc.evaluate(formulation.problem, formulation.problem.controls, cloud) for _ in range(2))
    assert all(torch.equal(first.gradient["phi"][n], leaf) for n, leaf in second.gradient["phi"].items())


@pytest.mark.parametrize("shape", [(3, 7, 8), (2, 1, 1), (2, 7)])
def test_inputs_that_do_not_fit_are_refused(shape):
    net, cloud = made("strides")
    x, y = torch.randn(TASKS, SHOTS, *shape, dtype=torch.float64), cloud.data["support"][1]
    with pytest.raises(InvalidValue):
        maml(net, F.cross_entropy, tasks((x, y), (x, y)), inner_steps=1, inner_lr=0.1)

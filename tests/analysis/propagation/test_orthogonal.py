"""Orthogonal and delta-orthogonal weights: isometries, random and seeded, for every layer that has one."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

from mfoc.analysis.propagation.orthogonal import delta_orthogonal_, orthogonal_, orthogonal_gain
from mfoc.errors import InvalidType, InvalidValue


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(9))


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1)])
def test_all_singular_values_of_a_matrix_are_the_gain(shape):
    weight = orthogonal_(torch.empty(shape, dtype=torch.float64), gain=1.5, generator=generator())
    assert torch.allclose(torch.linalg.svdvals(weight), torch.full((min(shape),), 1.5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype(dtype):
    """torch's own has no decomposition of halves; the weight here is the rounded one of doubles."""
    weight = orthogonal_(torch.empty(6, 4, dtype=dtype), generator=generator())
    exact = orthogonal_(torch.empty(6, 4, dtype=torch.float64), generator=generator())
    assert weight.dtype == dtype
    assert torch.equal(weight, exact.to(dtype))


def test_the_matrix_is_uniform():
    """A diagonal entry of a uniform orthogonal 2 x 2 matrix is the cosine of a uniform angle."""
    source = generator()
    entries = [float(orthogonal_(torch.empty(2, 2), generator=source)[0, 0]) for _ in range(2000)]
    angles = [math.acos(max(-1.0, min(1.0, entry))) / math.pi for entry in entries]
    assert stats.kstest(angles, "uniform").pvalue > 0.01


LAYERS = {
    "1d": (lambda: nn.Conv1d(3, 5, 3, padding=1, bias=False), (2, 3, 8)),
    "2d": (lambda: nn.Conv2d(4, 4, (3, 5), padding="same", bias=False), (2, 4, 6, 7)),
    "3d": (lambda: nn.Conv3d(2, 3, 3, padding=1, bias=False), (2, 2, 4, 5, 4)),
    "dilated": (lambda: nn.Conv2d(3, 3, 3, padding="same", dilation=2, bias=False), (2, 3, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False), (2, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (2, 4, 5, 5)),
    "pointwise": (lambda: nn.Conv2d(3, 6, 1, bias=False), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_convolution_keeps_the_length_of_every_image(kind):
    make, shape = LAYERS[kind]
    layer, x = make().double(), randn(*shape)
    delta_orthogonal_(layer.weight, gain=0.7, generator=generator(), groups=layer.groups)
    lengths = layer(x).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, 0.7 * x.flatten(1).norm(dim=1), rtol=1e-12)


def test_a_convolution_that_loses_channels_keeps_lengths_backwards():
    layer, x = nn.Conv2d(6, 2, 3, padding=1, bias=False).double(), randn(1, 6, 5, 5).requires_grad_()
    delta_orthogonal_(layer.weight, generator=generator())
    y = layer(x)
    cotangent = randn(*y.shape)
    (back,) = torch.autograd.grad(y, x, cotangent)
    assert torch.allclose(back.norm(), cotangent.norm(), rtol=1e-12)
    assert y.norm() < x.norm()


@pytest.mark.parametrize(("out", "own"), [(8, 3), (3, 8), (5, 5)])
def test_the_gain_that_acts_per_unit_as_a_variance(out, own):
    """chi of a block, ||J||_F^2 / n_out, is sw2 for weights of variance sw2 / n_in."""
    gain = orthogonal_gain(1.7, out, own)
    weight = orthogonal_(torch.empty(out, own, dtype=torch.float64), gain=gain, generator=generator())
    assert float(weight.square().sum() / out) == pytest.approx(1.7)


@pytest.mark.parametrize(("fill", "shape"), [(orthogonal_, (4, 3)), (delta_orthogonal_, (4, 3, 3, 3))])
def test_a_seed_gives_one_weight_and_leaves_the_global_generator_alone(fill, shape):
    before = torch.get_rng_state()
    first, again, other = (fill(torch.empty(shape), generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_generator_the_global_seed_counts():
    with torch.random.fork_rng(devices=[]):
        weights = [orthogonal_(torch.empty(3, 3)) for _ in range(2) if torch.manual_seed(0)]
    assert torch.equal(*weights)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3, 3)])
def test_a_parameter_stays_the_leaf_it_was(shape):
    parameter = nn.Parameter(torch.zeros(shape))
    filled = (orthogonal_ if len(shape) == 2 else delta_orthogonal_)(parameter, generator=generator())
    assert filled is parameter
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter.grad is None


def test_what_has_no_orthogonal_form_is_refused():
    kernel = torch.empty(4, 3, 3, 3)
    with pytest.raises(InvalidValue, match="use delta_orthogonal_"):
        orthogonal_(kernel)
    with pytest.raises(InvalidValue, match="use orthogonal_"):
        delta_orthogonal_(torch.empty(4, 3))
    with pytest.raises(InvalidValue, match="no centre tap"):
        delta_orthogonal_(torch.empty(4, 3, 3, 2))
    with pytest.raises(InvalidValue, match="3 groups do not divide"):
        delta_orthogonal_(kernel, groups=3)
    with pytest.raises(InvalidValue, match="lazy"):
        orthogonal_(nn.LazyLinear(3).weight)
    with pytest.raises(InvalidType, match="floating"):
        orthogonal_(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(InvalidType, match="weight is a list"):
        orthogonal_([[1.0]])
    with pytest.raises(InvalidValue, match="gain is nan"):
        orthogonal_(torch.empty(3, 3), gain=math.nan)
    with pytest.raises(InvalidType, match="generator is an int"):
        delta_orthogonal_(kernel, generator=0)

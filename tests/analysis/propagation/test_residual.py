"""Residual networks of infinite width, against the recursion written out, closed forms, and real random networks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from mfoc.analysis.propagation import ResidualPropagation
from mfoc.errors import InvalidType, InvalidValue

VARIANCES = (1.5, 0.1, 0.7, 0.05)


NODES = np.linspace(-9, 9, 601)
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()


def expect(function):
    """A mean over one standard normal."""
    return float(WEIGHTS @ function(NODES))


def expect2(function, c):
    """A mean over two standard normals of correlation c."""
    return float(WEIGHTS @ function(NODES[:, None], c * NODES[:, None] + math.sqrt(1 - c * c) * NODES) @ WEIGHTS)


def plain(phi, slope, sw2, sb2, sv2, sa2, depth, p, c, keep=1.0):
    """Yang & Schoenholz 2017, Theorems 2, 4 and 7, as they stand: with the covariance, not the distance."""
    gamma, rows, gains = c * p, [(p, c)], []
    for _ in range(depth):
        q, lam = sw2 * p + sb2, sw2 * gamma + sb2
        root, at = math.sqrt(q), min(lam / q, 1.0)
        gains.append(1 + sv2 * sw2 * expect(lambda z, r=root: slope(r * z) ** 2) / keep)
        gamma += sv2 * expect2(lambda a, b, r=root: phi(r * a) * phi(r * b), at) + sa2
        p += sv2 * expect(lambda z, r=root: phi(r * z) ** 2) / keep + sa2
        rows.append((p, gamma / p))
    return [row[0] for row in rows], [row[1] for row in rows], [math.prod(gains[k:]) for k in range(depth + 1)]


@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_it_is_the_recursion_written_out(keep):
    found = ResidualPropagation("tanh", *VARIANCES, dropout=1 - keep).iterate(4, p0=0.8, c0=0.3)
    p, c, gradient = plain(np.tanh, lambda u: 1 - np.tanh(u) ** 2, *VARIANCES, 4, 0.8, 0.3, keep)
    assert found.p.tolist() == pytest.approx(p, rel=1e-9)
    assert found.c.tolist() == pytest.approx(c, rel=1e-8)
    assert found.gradient.tolist() == pytest.approx(gradient, rel=1e-9)
    assert found.q.tolist() == pytest.approx([1.5 * length + 0.1 for length in p[:-1]], rel=1e-9)


def relu_pair(q, c):
    angle = math.acos(max(-1.0, min(1.0, c)))
    return q * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)


def erf_pair(q, c):
    return 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))


def gelu_pair(q, c):
    k = c * q
    one, two = q * (q - k * k / (1 + q)) + k * k / (1 + q), math.sqrt((1 + q) ** 2 - k * k)
    return k * (0.25 + math.asin(k / (1 + q)) / (2 * math.pi)) + one / (2 * math.pi * two)


@pytest.mark.parametrize(("name", "pair"), [("relu", relu_pair), ("erf", erf_pair), ("gelu", gelu_pair)])
@pytest.mark.parametrize("c0", [-0.4, 0.9])
def test_closed_forms_through_many_blocks(name, pair, c0):
    sw2, sb2, sv2, sa2 = VARIANCES
    found = ResidualPropagation(name, *VARIANCES).iterate(12, c0=c0)
    p, gamma = 1.0, c0
    for block in range(12):
        q, lam = sw2 * p + sb2, sw2 * gamma + sb2
        p, gamma = p + sv2 * pair(q, 1.0) + sa2, gamma + sv2 * pair(q, lam / q) + sa2
        assert float(found.p[block + 1]) == pytest.approx(p, rel=1e-11)
        assert float(found.c[block + 1]) == pytest.approx(gamma / p, rel=1e-9)


def test_equal_inputs_stay_equal_and_close_ones_lose_no_digit():
    """For ReLU d' / d tends to 1 + sv2 sw2 / 2 as d does to 0: 1 - c is known far below rounding of c."""
    sw2, _, sv2, _ = VARIANCES
    theory = ResidualPropagation("relu", *VARIANCES)
    assert theory.iterate(30, c0=1.0).c.tolist() == [1.0] * 31
    close = theory.iterate(1, c0=1 - 1e-12)
    distances = (1 - close.c) * close.p
    assert float(distances[1] / distances[0]) == pytest.approx(1 + sv2 * sw2 / 2, rel=1e-3)


# ---- real networks


def random_net(width, depth, phi, generator, keep=1.0):
    """Squared lengths, the correlation and the squared gradient of one random net, and its states."""
    sw2, sb2, sv2, sa2 = VARIANCES
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float32)  # noqa: E731
    basis = torch.linalg.qr(draw(width, 2)).Q.T * math.sqrt(width)
    x = torch.stack([basis[0], 0.5 * basis[0] + math.sqrt(0.75) * basis[1]]).requires_grad_()
    state = x
    for _ in range(depth):
        h = state @ draw(width, width) * math.sqrt(sw2 / width) + math.sqrt(sb2) * draw(width)
        branch = phi(h)
        if keep < 1:
            branch = branch * (torch.rand(branch.shape, generator=generator) < keep) / keep
        state = state + branch @ draw(width, width) * math.sqrt(sv2 / width) + math.sqrt(sa2) * draw(width)
    cotangent = draw(*state.shape)
    (back,) = torch.autograd.grad(state, x, cotangent)
    one, two = state.detach().double()
    length = float((one @ one + two @ two) / 2 / width)
    return length, float(one @ two) / width / length, float(back.square().mean() / cotangent.square().mean())


@pytest.mark.slow
@pytest.mark.parametrize(("phi", "keep"), [(torch.tanh, 1.0), (nn.GELU(), 1.0), (torch.relu, 0.7)])
def test_it_agrees_with_networks_of_width_2048(phi, keep):
    generator = torch.Generator().manual_seed(0)
    theory = ResidualPropagation(phi, *VARIANCES, dropout=1 - keep).iterate(2)
    expected = (float(theory.p[-1]), float(theory.c[-1]), float(theory.gradient[0]))
    seen = torch.tensor([random_net(2048, 2, phi, generator, keep) for _ in range(6)], dtype=torch.float64)
    errors = seen.std(0) / math.sqrt(len(seen))
    assert ((seen.mean(0) - torch.tensor(expected)).abs() < 3 * errors).all()
    assert (errors < 0.03 * torch.tensor(expected)).all()  # so that the bound says something


# ---- what is told


@pytest.mark.parametrize(
    ("activation", "growth", "rate"),
    [
        ("relu", "exponential", 1 + 0.7 * 1.5 / 2),
        ("gelu", "exponential", 1 + 0.7 * 1.5 / 2),
        (nn.LeakyReLU(0.2), "exponential", 1 + 0.7 * 1.5 * (1 + 0.04) / 2),
        ("tanh", "linear", 0.75),
        ("erf", "linear", 0.75),
        (lambda u: u / (1 + u * u) ** 0.25, "polynomial", 2.0),
        (torch.square, "faster than exponential", math.inf),
    ],
)
def test_how_lengths_grow(activation, growth, rate):
    theory = ResidualPropagation(activation, *VARIANCES)
    assert theory.growth == growth
    assert theory.growth_rate == pytest.approx(rate, rel=1e-2)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_rate_is_the_one_that_is_iterated(activation):
    theory = ResidualPropagation(activation, *VARIANCES)
    last, end = theory.iterate(300 if activation == "tanh" else 60, c0=None).p[-2:].tolist()
    step = end / last if activation == "relu" else end - last
    assert step == pytest.approx(theory.growth_rate, rel=0.06)


def test_without_branches_nothing_grows():
    still = ResidualPropagation("tanh", 1.5, 0.1, 0.0, 0.0)
    assert (still.growth, still.growth_rate, still.gradient_depth()) == ("constant", 0.0, math.inf)
    assert str(still).startswith("lengths stay as they are")
    assert still.iterate(5).c.tolist() == [0.5] * 6
    biased = ResidualPropagation("tanh", 0.0, 0.1, 0.0, 0.25)
    assert (biased.growth, biased.growth_rate) == ("linear", 0.25)
    assert biased.iterate(4).p.tolist() == pytest.approx([1, 1.25, 1.5, 1.75, 2])


def test_gradients_never_vanish_and_the_depth_is_where_they_are_e_times_as_large():
    theory = ResidualPropagation("tanh", 1.5, 0.1, 0.05, 0.0)
    depth = theory.gradient_depth()
    signal = theory.iterate(math.ceil(depth), c0=None).gradient
    shorter = theory.iterate(math.floor(depth), c0=None).gradient
    assert all(before >= after for before, after in pairwise(signal.tolist()))
    assert float(shorter[0]) < math.e < float(signal[0])
    assert theory.gradient_depth(most=3) == math.inf
    relu = ResidualPropagation("relu", 2.0, 0.0, 0.1, 0.0)  # a factor of 1.1 at every depth
    assert relu.gradient_depth() == pytest.approx(1 / math.log(1.1))
    assert relu.gradient_factor(7.0) == pytest.approx(1.1)


def test_dropout_parts_an_input_from_itself():
    """Schoenholz et al. 2017: with a mask for each, two passes of one input do not agree."""
    assert float(ResidualPropagation("tanh", *VARIANCES, dropout=0.1).iterate(5, c0=1.0).c[-1]) < 0.99


def test_the_verdict_comes_first():
    assert str(ResidualPropagation("relu", *VARIANCES)).startswith("lengths grow exponentially (x 1.525 a block)")
    told = str(ResidualPropagation("tanh", *VARIANCES, dropout=0.5))
    assert told.startswith("lengths grow linearly")
    assert "dropout 0.5" in told
    assert repr(ResidualPropagation("tanh", *VARIANCES).iterate(2)).startswith("after 2 blocks: p 1 -> ")


def test_the_figure_has_a_panel_for_each_quantity():
    pytest.importorskip("matplotlib")
    theory = ResidualPropagation("relu", *VARIANCES)
    axes = theory.plot(4).axes
    signal = theory.iterate(4)
    assert [list(axis.lines[0].get_ydata()) for axis in axes] == [
        v.tolist() for v in (signal.p, signal.gradient, signal.c)
    ]
    assert len(theory.iterate(4, c0=None).plot().axes) == 2


def test_what_is_refused():
    theory = ResidualPropagation("relu", *VARIANCES)
    with pytest.raises(InvalidValue, match="branch_weight_variance is -1"):
        ResidualPropagation("relu", 1, 0, -1, 0)
    with pytest.raises(InvalidValue, match=r"dropout is 1\.5"):
        ResidualPropagation("relu", 1, 0, 1, 0, dropout=1.5)
    with pytest.raises(InvalidType, match="activation is an int"):
        ResidualPropagation(3, 1, 0, 1, 0)
    with pytest.raises(InvalidValue, match=r"c0 is 1\.5"):
        theory.iterate(3, c0=1.5)
    with pytest.raises(InvalidType, match="c0 is '1'"):
        theory.iterate(3, c0="1")
    with pytest.raises(InvalidValue, match="p0 is 0"):
        theory.iterate(3, p0=0)
    with pytest.raises(InvalidType, match=r"depth is 2\.0"):
        theory.iterate(2.0)
    with pytest.raises(InvalidValue, match="no deep network of this kind"):
        theory.iterate(2000)
    with pytest.raises(InvalidValue, match="c0=None to leave it out"):
        ResidualPropagation(torch.square, *VARIANCES).iterate(9)
    with pytest.raises(InvalidValue, match="no deep network of this kind"):
        ResidualPropagation(torch.square, *VARIANCES).iterate(9, c0=None)
    assert theory.iterate(0).gradient.tolist() == [1.0]

"""Products of the shares of layers: blocks of the kernel, and its diagonal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfoc.analysis.kernel.layers import Factors, Rows, Share, dense_rows


def block(left: Sequence[Share], right: Sequence[Share], out: Tensor, *, trace: bool) -> Tensor:
    """Fills a block of the kernel with the sum over layers of their products.

    Args:
        left: shares of the samples of its rows.
        right: shares of the samples of its columns.
        out: zeros ``[n1, C, n2, C]``; ``[n1, n2]`` where it is the trace.
        trace: sum over the outputs.
    """
    for a, b in zip(left, right, strict=True):
        add_product(out, a, b, trace=trace)
    return out


def add_product(theta: Tensor, left: Share, right: Share, *, trace: bool) -> None:
    """Adds the share of one layer to a block ``[n1, C, n2, C]`` of the kernel; of its trace, ``[n1, n2]``."""
    if isinstance(left, Rows) and isinstance(right, Rows):
        over = 1 if trace else 2
        a, b = left.rows.flatten(over), right.rows.flatten(over)
        if not trace:
            a, b = a.flatten(0, 1), b.flatten(0, 1)
        theta.view(len(a), len(b)).addmm_(a, b.mT)
    elif isinstance(left, Factors) and isinstance(right, Factors):
        for group in range(left.slopes.shape[2]):
            _add_gram(theta, left, right, group, trace)


def _add_gram(theta: Tensor, left: Factors, right: Factors, group: int, trace: bool) -> None:
    g1, g2 = left.slopes[:, :, group], right.slopes[:, :, group]  # [n, C, D, S]
    if g1.shape[-1] == g2.shape[-1] == 1:
        here = _meets(left, right, slice(None), group)[:, 0, :, 0]  # [n1, n2]
        if trace:
            theta += here * (g1.flatten(1) @ g2.flatten(1).mT)
        else:
            there = g1[..., 0].flatten(0, 1) @ g2[..., 0].flatten(0, 1).mT
            theta += here[:, None, :, None] * there.view(theta.shape)
        return
    n2, outputs, outs, positions = g2.shape
    for i in range(len(g1)):  # one sample at a time: the products over all positions are large
        here = _meets(left, right, slice(i, i + 1), group)[0]  # [S, n2, T]
        if trace:
            there = g1[i].flatten(0, 1).mT @ g2.permute(1, 2, 0, 3).reshape(outputs * outs, -1)
            theta[i] += (here * there.view_as(here)).sum((0, 2))
        else:
            there = g1[i].permute(0, 2, 1).reshape(-1, outs) @ g2.permute(2, 0, 1, 3).reshape(outs, -1)
            there = there.view(outputs, -1, n2, outputs, positions)
            theta[i] += torch.einsum("snt,csndt->cnd", here, there)


def _meets(left: Factors, right: Factors, rows: slice, group: int) -> Tensor:
    """<a_s, a'_t> of some samples on the left, the one of a bias added: ``[n1, S, n2, T]``."""
    if not left.inputs.is_floating_point():
        here = left.inputs[rows]
        return (here[:, :, None, None] == right.inputs).to(left.slopes)
    a, b = left.inputs[rows, group], right.inputs[:, group]  # [n, K, S]
    shape = (len(a), a.shape[2], len(b), b.shape[2])
    if not left.weight:
        return a.new_ones(shape)
    product = a.mT.reshape(-1, a.shape[1]) @ b.permute(1, 0, 2).reshape(b.shape[1], -1)
    return product.view(shape) + (1 if left.bias else 0)


def squares(part: Share) -> Tensor:
    """The squared length of each gradient: ``[n, C]``."""
    if isinstance(part, Rows):
        return part.rows.square().sum(2)
    if part.slopes.shape[-1] == 1 and part.inputs.is_floating_point():
        here = part.inputs[..., 0].square().sum(2) * part.weight + part.bias  # [n, G]
        return (part.slopes[..., 0].square().sum(3) * here[:, None]).sum(2)
    if part.inputs.is_floating_point():
        return dense_rows(part).square().sum(2)
    same = (part.inputs[:, :, None] == part.inputs[:, None]).to(part.slopes)
    g = part.slopes[:, :, 0]
    return torch.einsum("nst,ncds,ncdt->nc", same, g, g)

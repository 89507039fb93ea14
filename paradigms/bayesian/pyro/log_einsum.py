"""Sums of products of probabilities by their logs: a backend of ``opt_einsum`` with derivatives of all orders.

Pyro has one, whose logarithm has a derivative of its own making that ``torch.func`` cannot transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

import torch
from torch import Tensor


def transpose(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The axes in another order."""
    return x.permute(*axes)


def einsum(equation: str, *logs: Tensor) -> Tensor:
    """An einsum of exp(logs), taken to the log: log sum exp in place of sum.

    Each factor is divided by its largest entry over the axes summed, which is constant and so has no derivative. A sum
    that is zero is -inf, of derivative zero.
    """
    symbols = sorted(set(equation) - set(",->"))
    equation = equation.translate({ord(old): new for old, new in zip(symbols, ascii_letters, strict=False)})
    inputs, output = equation.split("->")
    total: Tensor | None = None
    factors = []
    for axes, log in zip(inputs.split(","), logs, strict=True):
        summed = [k for k, axis in enumerate(axes) if axis not in output]
        top = log.detach()
        top = top.amax(summed, keepdim=True) if summed else top
        top = top.clamp(min=torch.finfo(top.dtype).min)  # -inf - -inf is no number
        factors.append((log - top).exp())
        kept = "".join(axis for axis in axes if axis in output)
        shift = _placed(top.squeeze(summed) if summed else top, kept, output)
        total = shift if total is None else total + shift
    sums = torch.einsum(equation, *factors)
    some = sums > 0
    found = torch.where(some, torch.where(some, sums, torch.ones_like(sums)).log(), -torch.inf)
    return found if total is None else found + total


def _placed(x: Tensor, axes: str, output: str) -> Tensor:
    """A tensor with these axes, its axes moved to where the output has them, and others of length one."""
    order = [axes.index(axis) for axis in output if axis in axes]
    lengths = iter(x.shape[k] for k in order)
    return x.permute(order).reshape([next(lengths) if axis in axes else 1 for axis in output])


def tensordot(x: Tensor, y: Tensor, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """As ``torch.tensordot``, with ``einsum``."""
    left, right = (range(x.dim() - axes, x.dim()), range(axes)) if isinstance(axes, int) else axes
    names = iter(ascii_letters)
    mine, theirs = [next(names) for _ in range(x.dim())], [next(names) for _ in range(y.dim())]
    for k, m in zip(left, right, strict=True):
        theirs[m] = mine[k]
    output = [name for name in mine if name not in theirs] + [name for name in theirs if name not in mine]
    return einsum(f"{''.join(mine)},{''.join(theirs)}->{''.join(output)}", x, y)

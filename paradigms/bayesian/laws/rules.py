"""First derivatives written out, for functions that are cheap beside what autograd spends on them.

A ``Rule`` is a function of tensors written twice: plainly, as autograd can differentiate it however often and in
whatever mode; and with its first derivatives at hand. Which one runs shows in nothing but time.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from mfoc.derivatives import transforming

_KINDS = (Tensor, nn.Parameter)

Slopes = tuple[Tensor | None, ...]


class Rule(Protocol):
    """A function of several tensors to one, of one real dtype and on one device."""

    def plain(self, *inputs: Tensor) -> Tensor:
        """Its value, by operations that autograd follows."""

    def value(self, *inputs: Tensor) -> tuple[Tensor, Any]:
        """Its value, and what ``slopes`` wants of how it was found."""

    def slopes(self, slope: Tensor, held: Any, wanted: tuple[bool, ...], *inputs: Tensor) -> Slopes:
        """The derivatives in the inputs of <slope, value>; None where one is not wanted."""


def ruled(rule: Rule, *inputs: Tensor) -> Tensor:
    """The value of a rule, whose first derivatives are those written out where a backward pass is what will ask."""
    if torch.is_grad_enabled() and any([leaf.requires_grad for leaf in inputs]) and _reverse(inputs):
        found: Tensor = _Ruled.apply(rule, *inputs)  # type: ignore[no-untyped-call]
        return found
    return rule.plain(*inputs)


def _reverse(inputs: tuple[Tensor, ...]) -> bool:
    """Whether nothing but a backward pass can be under way: no ``torch.func``, forward mode, autocast or recording."""
    first = inputs[0]
    if transforming() or torch.is_autocast_enabled(first.device.type) or torch.compiler.is_compiling():
        return False
    if not all([type(leaf) in _KINDS and leaf.dtype == first.dtype for leaf in inputs]):
        return False
    return all([unpack_dual(leaf).tangent is None for leaf in inputs])  # type: ignore[no-untyped-call]


class _Ruled(torch.autograd.Function):
    """A rule as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, *inputs: Tensor) -> Tensor:
        found, ctx.held = rule.value(*inputs)
        ctx.rule = rule
        ctx.save_for_backward(*inputs)
        return found

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        again = torch.is_grad_enabled()
        if not again and not transforming():
            return None, *ctx.rule.slopes(slope, ctx.held, wanted, *inputs)
        # A derivative that is to be differentiated again, or many at once: those of the plain form are as good as any.
        with torch.enable_grad():
            # Aliases, so that nothing is differentiated but this function, where one input is made from another.
            free = [leaf.view_as(leaf) for leaf in inputs]
            asked = [leaf for leaf, is_wanted in zip(free, wanted, strict=True) if is_wanted]
            found = iter(torch.autograd.grad(ctx.rule.plain(*free), asked, slope, create_graph=again))
        return None, *[next(found) if is_wanted else None for is_wanted in wanted]

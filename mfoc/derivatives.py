"""Derivatives by autograd that are zero where nothing depends on an input, in place of an error or None."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.tree import Tree


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    seeds: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    """The vector-Jacobian product d sum_k <seed_k, output_k> / d input, for each input.

    Args:
        outputs: a tensor, or several.
        inputs: what to differentiate in; one that does not require grad gets zeros.
        seeds: one for each output, of its shape; ones when None.
        create_graph: keep the graph of the derivative.
        retain_graph: keep the graph of the outputs; as ``create_graph`` when None.

    Returns:
        A tensor for each input, of its shape.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    given = map(_ones, outputs) if seeds is None else seeds
    reached = [(output, seed) for output, seed in zip(outputs, given, strict=True) if output.requires_grad]
    free = [leaf for leaf in inputs if leaf.requires_grad]
    if not reached or not free:
        return [torch.zeros_like(leaf) for leaf in inputs]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in reached],
            free,
            [seed for _, seed in reached],
            create_graph=create_graph,
            retain_graph=retain_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return [next(found) if leaf.requires_grad else torch.zeros_like(leaf) for leaf in inputs]


def reached(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[bool]:
    """Whether a path in the autograd graph leads from each input to any of the outputs: nothing is differentiated.

    A slope that happens to be zero has a path.

    Args:
        outputs: tensors.
        inputs: leaves of the graph that require grad.
    """
    found = {id(output) for output in outputs}  # an output may be an input itself
    found |= {id(node.variable) for node in _nodes(outputs) if hasattr(node, "variable")}  # leaves accumulate there
    return [id(leaf) in found for leaf in inputs]


def once_differentiable(output: Tensor) -> str:
    """The name of a function in the graph of ``output`` that is marked ``once_differentiable``; empty if none is.

    Where a graph of derivatives is asked for, autograd takes the derivative of such a function for a constant, so that
    its second derivative is zero without an error.
    """
    for node in _nodes([output]):
        made: Any = getattr(node, "_forward_cls", None)  # of functions written in Python
        code = getattr(getattr(made, "backward", None), "__code__", None)
        if code is not None and code is _MARKED:
            return str(made.__name__)
    return ""


def _nodes(outputs: Sequence[Tensor]) -> Iterator[Any]:
    """The nodes of the autograd graph behind some tensors, each once."""
    waiting: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


_MARKED = torch.autograd.function.once_differentiable(lambda ctx: None).__code__  # one for all that are marked


def _ones(output: Tensor) -> Tensor | None:
    """Ones, which autograd makes itself for a number.

    They are expanded, not filled: products with them then run over whole blocks of memory, not over the last axis.
    """
    return output.new_ones(()).expand(output.shape) if output.dim() else None


def tree_gradients(output: Tensor, trees: Sequence[Tree]) -> list[Tree]:
    """The derivative of sum(output) in each tree; leaves that are not floating point get zeros.

    Args:
        output: a tensor.
        trees: pytrees whose differentiable leaves require grad.
    """
    found = iter(gradients(output, [leaf for each in trees for leaf in tree.tensors(each)]))

    def pick(leaf: Any) -> Any:
        return next(found) if tree.differentiable(leaf) else torch.zeros_like(leaf)

    return [tree.map(pick, each) for each in trees]

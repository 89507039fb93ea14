"""Derivatives by autograd that are zero where nothing depends on an input, in place of an error or None.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfoc import tree
from mfoc.errors import InvalidValue
from mfoc.switches import Shared
from mfoc.tree import Tree

_plain_attention = Shared(partial(sdpa_kernel, SDPBackend.MATH))
_without_cudnn = Shared(partial(torch.backends.cudnn.flags, enabled=False))
_twice = ContextVar("twice", default=False)
_functorch: Any = torch._C._functorch  # noqa: SLF001  there is no public way to ask


def check_derivatives(what: str = "this") -> None:
    """Refuses to take derivatives where torch records none, so that all of them would be zero.

    Args:
        what: what needs them.

    Raises:
        InvalidValue: ``torch.inference_mode()`` is on.
    """
    if torch.is_inference_mode_enabled():
        raise InvalidValue(f"torch.inference_mode() is on and {what} needs derivatives; leave it (no_grad is fine)")


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

    Raises:
        InvalidValue: ``torch.inference_mode()`` is on.
    """
    check_derivatives()
    if isinstance(outputs, Tensor):
        if seeds is None and outputs.requires_grad and all(leaf.requires_grad for leaf in inputs) and inputs:
            seed = None if outputs.dim() == 0 else _ones(outputs)
            return list(
                torch.autograd.grad(
                    outputs,
                    inputs,
                    seed,
                    create_graph=create_graph,
                    retain_graph=retain_graph,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )
        outputs = [outputs]
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

    Raises:
        InvalidValue: ``torch.inference_mode()`` is on, in which there is no graph.
    """
    check_derivatives()
    found = {id(output) for output in outputs}  # an output may be an input itself
    found |= {id(node.variable) for node in _nodes(outputs) if hasattr(node, "variable")}  # leaves accumulate there
    return [id(leaf) in found for leaf in inputs]


def once_differentiable(output: Tensor) -> str:
    """The name of a function in the graph of ``output`` that is marked ``once_differentiable``; empty if none is.

    Where a graph of derivatives is asked for, autograd takes the derivative of such a function for a constant, so that
    its second derivative is zero without an error.
    """
    for node in _nodes([output]):
        if found := _marked(getattr(node, "_forward_cls", None)):  # of functions written in Python
            return found
    return ""


def _marked(made: Any, above: tuple[Any, ...] = ()) -> str:
    """The name of an ``autograd.Function`` that is marked; empty if it is not.

    Under ``torch.func.vmap`` torch makes another function of it, whose backward holds the first one.
    """
    backward = getattr(made, "backward", None)
    if getattr(backward, "__code__", None) is _MARKED:
        return str(made.__name__)
    for cell in getattr(backward, "__closure__", None) or ():
        held = cell.cell_contents
        inside = isinstance(held, type) and issubclass(held, torch.autograd.Function) and held not in (*above, made)
        if inside and (found := _marked(held, (*above, made))):
            return found
    return ""


def transforming() -> bool:
    """Whether a ``torch.func`` transform is active, in which values cannot be compared."""
    return _functorch.maybe_current_level() is not None


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within it attention runs by its plain formula, the only way of it that has second derivatives.

    So do recurrent layers on a GPU, see ``recurrent_kernels``. Enter it around the forward pass whose graph is
    differentiated twice; where one derivative is enough, the fast kernels are right.

    Raises:
        InvalidValue: ``torch.inference_mode()`` is on.
    """
    check_derivatives()
    token = _twice.set(True)
    try:
        with without_fast_path(), _plain_attention():
            yield
    finally:
        _twice.reset(token)


@contextmanager
def recurrent_kernels(training: bool) -> Iterator[None]:
    """Within it recurrent layers on a GPU have the derivatives that are wanted: around their forward pass.

    Those of cuDNN have no second derivative, and in evaluation mode none at all; they are left where these are wanted.

    Args:
        training: the mode of the layers.
    """
    if not torch.is_grad_enabled() or (training and not _twice.get()):
        yield
        return
    with _without_cudnn():
        yield


@Shared
@contextmanager
def without_fast_path() -> Iterator[None]:
    """Within it ``nn.TransformerEncoderLayer`` and its kin in evaluation mode run as in training mode.

    Their fast path has no derivative. They leave it where they see that one is wanted, which under ``torch.func.vmap``
    they do not see.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def second_order(what: str, cure: str) -> Iterator[None]:
    """Within it second derivatives are taken: ``twice_differentiable``, and what has none is refused by name.

    Args:
        what: what needs second derivatives.
        cure: what to do where there are none.

    Raises:
        InvalidValue: an operation has none; other errors are as they were.
    """
    try:
        with twice_differentiable():
            yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not (found := no_derivative(error)):
            raise
        raise InvalidValue(f"{what} needs second derivatives, and {found}; {cure}") from error


def check_twice(output: Tensor, inputs: Sequence[Tensor], what: str, cure: str) -> None:
    """Refuses an output that cannot be differentiated twice, by trying it along one direction; its graph is kept.

    Args:
        output: a tensor, computed within ``twice_differentiable()``.
        inputs: what it is to be differentiated in.
        what: what needs second derivatives.
        cure: what to do where there are none.

    Raises:
        InvalidValue: an operation has no second derivative, or is marked ``once_differentiable``.
    """
    refuse_once_differentiable(output, what, cure)
    with torch.enable_grad(), second_order(what, cure):
        slopes = gradients(output, inputs, create_graph=True)
        gradients(slopes, inputs, retain_graph=True)


def refuse_once_differentiable(output: Tensor, what: str, cure: str) -> None:
    """Refuses a function in the graph of ``output`` whose second derivative would be zero in silence.

    Args:
        output: a tensor.
        what: what needs second derivatives.
        cure: what to do where there are none.

    Raises:
        InvalidValue: one is marked ``once_differentiable``.
    """
    if once := once_differentiable(output):
        why = f"{once} is marked once_differentiable, so that it has no second derivative"
        raise InvalidValue(f"{what} needs second derivatives, and {why}; {cure}")


def no_derivative(error: RuntimeError) -> str:
    """What an error of autograd says has no (second) derivative, in words; empty where it says something else.

    The sentence ends with a way round, where there is one.
    """
    words = str(error)
    if found := re.search(r"derivative for '?(?:aten::)?_*(\w+)(: \w+)?'? is not implemented", words):
        name = found[1].removesuffix("_backward")
        order = "second derivative" if name != found[1] else "derivative"
        round_it = next((way for known, way in _WAYS.items() if name.startswith(known)), "")
        return f"torch's {name}{found[2] or ''} has no {order}{round_it and f' ({round_it})'}"
    if "double backward" in words or "differentiate twice" in words:
        compiled = "compile" in words
        return "what torch.compile made has none (give the module itself)" if compiled else words.splitlines()[0]
    return ""


# Operations without a second derivative, and what is the same and has one.
_WAYS = {
    "hardsigmoid": "F.relu6(x + 3) / 6 is the same function and has one",
    "embedding_bag": "F.embedding(indices, weight).sum(1), or .mean(1) or .amax(1), is the same and has one",
    "segment_reduce": "torch.zeros(...).index_add(0, segment, x) is a sum by segments and has one",
    "multi_margin_loss": "written out, (1 - x[y] + x).clamp_min(0) over the other classes, it has one",
    "cudnn_rnn": "within torch.backends.cudnn.flags(enabled=False) recurrent layers have one",
    "scaled_dot_product": "within torch.nn.attention.sdpa_kernel(SDPBackend.MATH) attention has one",
}


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

"""What the operations of a traced forward pass do: which read sizes only, which write, which are views."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

# What says nothing of a tensor's values: its size, its kind, new tensors of either.
_METADATA = frozenset(
    [
        "shape",
        "size",
        "dim",
        "ndim",
        "ndimension",
        "numel",
        "nelement",
        "stride",
        "dtype",
        "device",
        "is_cuda",
        "get_device",
        "is_floating_point",
        "is_complex",
        "element_size",
        "layout",
        "requires_grad",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_tensor",
    ]
)
_VIEWS = frozenset(
    [
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
        "t",
        "T",
        "mT",
        "H",
        "mH",
        "swapaxes",
        "swapdims",
        "movedim",
        "expand",
        "expand_as",
        "broadcast_to",
        "narrow",
        "select",
        "chunk",
        "split",
        "tensor_split",
        "hsplit",
        "vsplit",
        "unbind",
        "unfold",
        "diagonal",
        "getitem",
        "detach",
        "contiguous",
        "to",
        "type",
        "type_as",
        "float",
        "double",
        "half",
        "bfloat16",
        "real",
        "imag",
        "data",
        "dropout",
        "alias",
        "positive",
        "requires_grad_",
    ]
)
_WRITERS = frozenset(
    getattr(operator, f"i{name}")
    for name in [
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
        "concat",
    ]
) | {operator.setitem}
_PASSED_ON = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten)


def asserted(condition: Any, message: str) -> None:
    """An ``assert`` of a forward pass.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)


def name_of(node: fx.Node) -> str:
    """What a call or an attribute is called."""
    if node.op == "call_function" and node.target is getattr:
        return str(node.args[1])
    return str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", node.target))


def is_metadata(node: fx.Node) -> bool:
    """Whether the outcome has nothing to do with the values of tensors."""
    return node.op in ("call_function", "call_method") and name_of(node) in _METADATA


def is_getitem(node: fx.Node) -> bool:
    """Whether it takes one part of a tuple (or of a dict)."""
    return node.target is operator.getitem and isinstance(node.args[1], int | str)


def is_count(node: fx.Node) -> bool:
    """Whether it is the number of particles: the length of the first axis of an argument of the network."""
    if node.op == "call_method" and node.target == "size":
        asked, source = [*node.args[1:], *node.kwargs.values()], node.args[0]
        return asked == [0] and _is_argument(source)
    if not is_getitem(node) or node.args[1] != 0 or not isinstance(node.args[0], fx.Node):
        return False
    size = node.args[0]
    read = size.op in ("call_function", "call_method") and name_of(size) in ("shape", "size")
    return read and len(size.args) + len(size.kwargs) == 1 + (size.target is getattr) and _is_argument(size.args[0])


def _is_argument(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "placeholder"


def is_view(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the outcome may share memory with the first argument."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _PASSED_ON)
    return node.op in ("call_function", "call_method") and (name_of(node) in _VIEWS or written(node) is not None)


def written(node: fx.Node) -> fx.Node | None:
    """The node that an operation writes into, if it writes into one."""
    source = node.kwargs.get("out", node.args[0] if node.args else node.kwargs.get("input"))
    if node.op not in ("call_function", "call_method") or not isinstance(source, fx.Node):
        return None
    return source if _writes(node) else None


def _writes(node: fx.Node) -> bool:
    name = name_of(node)
    if node.target in _WRITERS or "out" in node.kwargs:
        return True
    if name.endswith("_") and not name.endswith("__"):
        return True
    return node.op == "call_function" and _argument(node, "inplace") is True


def _argument(node: fx.Node, name: str) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # of functions of C++
        return None
    return given.arguments.get(name)


def is_needless(node: fx.Node) -> bool:
    """Whether nothing is lost without it: no module is called, nothing is asserted, nothing is written."""
    asserts = name_of(node) in ("asserted", "_assert", "_assert_async")
    plain = node.op in ("call_function", "call_method", "get_attr")
    return plain and not node.users and not asserts and written(node) is None

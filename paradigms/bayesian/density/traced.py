"""Functions of tensors as flat lists of tensor operations: what is left of Python is one call for each operation.

A Pyro model spends most of its time in message passing, which does the same for every evaluation. Under ``vmap`` the
control flow of a model cannot depend on its latents, so one recording serves all later calls with these shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

_KEPT = 8  # recordings kept for one function; the oldest makes room
_FILLED = ("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.new_zeros", "aten.new_ones", "aten.new_full")


class Traced:
    """A function of tensors, recorded once for each combination of shapes, dtypes and devices.

    The function returns a tensor or a tuple of tensors. What does not depend on its arguments is computed once. If a
    recording cannot be made the function itself is used.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._recorded: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Tensor) -> Any:
        """The function, recorded at the first call with such arguments."""
        key = tuple((arg.shape, arg.dtype, arg.device) for arg in args)
        recorded = self._recorded  # replaced as a whole: other threads may add to it
        if (found := recorded.get(key)) is None:
            found = self._record(args)
            self._recorded = dict([*recorded.items(), (key, found)][-_KEPT:])
        return found(*args)

    def _record(self, args: tuple[Tensor, ...]) -> Callable[..., Any]:
        from torch.fx.experimental.proxy_tensor import make_fx

        inputs = [arg.detach().clone() for arg in args]
        with torch.no_grad():
            expected = self._function(*inputs)  # the function's own errors come from here
            try:
                graph = _simplified(make_fx(torch.func.functionalize(self._function))(*inputs), inputs)
                found = graph(*inputs)
            except Exception:  # tracing is a convenience; whatever it cannot do, the function itself can
                return self._function
        return graph.forward if _agree(expected, found) else self._function


def _agree(left: Any, right: Any) -> bool:
    left, right = (value if isinstance(value, tuple) else (value,) for value in (left, right))
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in zip(left, right, strict=True))


def _simplified(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    """The same graph without what is known beforehand: constants are computed once, operations that do nothing go."""
    original, module = module, copy.deepcopy(module)
    graph, folded = module.graph, []
    values: dict[fx.Node, Any] = {}
    fixed: set[fx.Node] = set()
    stream = iter(inputs)
    for node in list(graph.nodes):
        if node.op == "placeholder":
            values[node] = next(stream)
        elif node.op == "get_attr":
            values[node] = getattr(module, str(node.target))
            fixed.add(node)
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            value = values[node] = node.target(*args, **kwargs)
            name = str(node.target)
            alone = all(arg in fixed for arg in node.all_input_nodes)
            if _writes(node) and not alone:
                return original
            source = None if _writes(node) else _copied(node, name, values)
            if source is not None:
                node.replace_all_uses_with(source)
            elif isinstance(value, Tensor) and (alone or name.startswith(_FILLED)) and "rand" not in name:
                constant = f"_constant_{len(values)}"
                module.register_buffer(constant, value, persistent=False)
                with graph.inserting_before(node):
                    stored = graph.get_attr(constant)
                values[stored] = value
                fixed.add(stored)
                node.replace_all_uses_with(stored)
                folded.append(node)
    for node in reversed(folded):  # those that write into a constant have done so
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _copied(node: fx.Node, name: str, values: dict[fx.Node, Any]) -> fx.Node | None:
    """The node whose value this one only repeats, or None."""
    if name.startswith("aten.cat.") and len(node.args[0]) == 1:  # type: ignore[arg-type]
        return node.args[0][0]  # type: ignore[index, return-value]
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if first is None or not isinstance(values[first], Tensor):
        return None
    same = isinstance(values[node], Tensor) and values[first].shape == values[node].shape
    if name.startswith(("aten.view.", "aten.expand.", "aten._unsafe_view.", "aten.reshape.", "aten.alias.")):
        return first if same else None
    power_of_one = name == "aten.pow.Tensor_Scalar" and node.args[1] == 1 and values[first].is_floating_point()
    return first if power_of_one else None

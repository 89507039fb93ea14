"""Where a network can be cut: the tensors that everything passes through, found on the graph of one forward pass.

Whatever its code looks like, a network's signal passes bottlenecks: the residual stream between blocks, the output of a
layer in a chain. They are those recorded tensors that every path from the output back to the input goes through. What
lies between two of them is a block, with a Jacobian of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mfoc import tree
from mfoc.analysis.propagation.initialisation.drafts import Draft
from mfoc.errors import InvalidValue


@dataclass(frozen=True, eq=False)
class Event:
    """A tensor that goes into a module or comes out of it.

    Attributes:
        name: the module's name.
        module: the module.
        entry: the event at which the call that ends here began; None of what goes in.
        edge: its place on the graph.
        value: a copy, which later writes in place leave alone.
    """

    name: str
    module: nn.Module
    entry: int | None
    edge: GradientEdge | None
    value: Tensor | None


@dataclass(eq=False)
class Pass:
    """What one forward pass went through, event by event.

    Attributes:
        events: in the order of the run.
        roots: the edges where the graph begins: the input, or the first floating point tensors made from it.
        output: where it ends; None where it was stopped before.
    """

    events: list[Event] = field(default_factory=list)
    roots: list[GradientEdge] = field(default_factory=list)
    output: GradientEdge | None = None


class _EnoughError(Exception):
    pass


def run(draft: Draft, args: Sequence[Any], *, last: int | None = None) -> Pass:
    """One forward pass of a draft, up to the event ``last``, recorded.

    Raises:
        InvalidValue: the network fails on this input, or no floating point output depends on it.
    """
    found, entries, handles = Pass(), [], []

    def note(name: str, module: nn.Module, value: Any, entry: int | None) -> None:
        first = value if isinstance(value, Tensor) else next(iter(tree.tensors(value)), None)
        edge, copy = None, None
        if isinstance(first, Tensor) and first.requires_grad:
            edge, copy = get_gradient_edge(first), first.clone()
        found.events.append(Event(name, module, entry, edge, copy))
        if last is not None and len(found.events) > last:
            raise _EnoughError

    def before(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            entries.append(len(found.events))
            note(name, module, inputs[0] if inputs else None, None)

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
            if not found.roots and isinstance(output, Tensor) and output.is_floating_point():
                output = _root(output, found)  # of an input of integers the graph begins where it is embedded
            note(name, module, output, entries.pop())
            return output

        return hook

    for name, part in draft.net.named_modules():
        handles += [part.register_forward_pre_hook(before(name)), part.register_forward_hook(after(name))]
    try:
        # Copies, since the network may write over what it is given, which a leaf refuses.
        given = [_root(a, found).clone() if tree.differentiable(a) else a for a in args]
        output = next(iter(tree.tensors(draft(draft.net, *given))), None)
        if output is None or not output.requires_grad:
            raise InvalidValue("the network's output has no floating point tensor that depends on x")
        found.output = get_gradient_edge(output)
    except _EnoughError:
        pass
    except InvalidValue:
        raise
    except Exception as error:  # whatever the user's network raises
        raise InvalidValue(f"the network fails on x: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _root(value: Tensor, found: Pass) -> Tensor:
    root = value.detach().clone().requires_grad_(True)
    found.roots.append(get_gradient_edge(root))
    return root


def bottlenecks(found: Pass) -> dict[Any, int]:
    """The nodes that every path from the output to a root goes through, each with its first event.

    They are those on as many paths as there are in all; paths are counted in exact integers.
    """
    assert found.output is not None  # a whole pass
    order = _sorted(found.output.node)
    roots = {edge.node for edge in found.roots}
    down: dict[Any, int] = {}
    branches: dict[Any, set[int]] = {}
    for node in reversed(order):
        following = [(after, slot) for after, slot in node.next_functions if after is not None]
        down[node] = int(node in roots) + sum(down[after] for after, _ in following)
        for after, slot in following:
            branches.setdefault(after, set()).add(slot)
    up: Counter[Any] = Counter({found.output.node: 1})
    for node in order:
        for after, _ in node.next_functions:
            if after is not None:
                up[after] += up[node]
    total = down[found.output.node]
    first: dict[Any, int] = {}
    for index, event in enumerate(found.events):
        node = event.edge.node if event.edge is not None else None
        # A node of several outputs (a chunk) is passed by all, each of its outputs only by some.
        if node in down and up[node] * down[node] == total and len(branches.get(node, ())) <= 1:
            first.setdefault(node, index)
    return first


def _sorted(start: Any) -> list[Any]:
    """The nodes behind one, each before all that it was computed from."""
    order, done, stack = [], set(), [(start, False)]
    while stack:
        node, closed = stack.pop()
        if closed:
            order.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack += [(after, False) for after, _ in node.next_functions if after is not None and after not in done]
    return order[::-1]


@dataclass(frozen=True, eq=False)
class Reading:
    """What was measured of a block.

    Attributes:
        q: the mean square of what comes out.
        chi: ||J||_F^2 / n_out.
        chi_q: by what factor a small relative change of the input's length comes out: <h, J x> / ||h||^2.
    """

    q: float
    chi: float
    chi_q: float


def read(found: Pass, start: int | None, end: int, *, seed: int, probes: int) -> Reading:
    """Measures a block between two events of a pass; from the roots where ``start`` is None.

    The probes are the same at each call of the same seed, so that two settings of a block are compared without noise.
    """
    event = found.events[end]
    begin = found.roots if start is None else [found.events[start].edge]
    assert event.value is not None  # a cut lies on the graph
    output, value = event.value, event.value.detach().double()
    q = float(value.square().mean())
    generator = torch.Generator().manual_seed(seed)
    squares = 0.0
    for _ in range(probes):
        probe = torch.randn(output.shape, generator=generator, dtype=torch.float32, device="cpu").to(
            output.device, output.dtype
        )
        squares += sum(float(part.double().square().sum()) for part in _pull(output, begin, probe))
    growth = 0.0
    if start is not None:
        entry = found.events[start].value
        assert entry is not None
        along = _pull(output, begin, event.value.detach())[0].double()
        growth = float((along * entry.detach().double()).sum() / value.square().sum().clamp(min=1e-300))
    return Reading(q, squares / probes / max(output.numel(), 1), growth)


def _pull(output: Tensor, begin: Sequence[Any], probe: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(output, tuple(begin), probe, retain_graph=True, allow_unused=True)
    return [part for part in found if part is not None] or [torch.zeros(1, device=output.device)]

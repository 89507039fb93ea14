"""A function of one element, evaluated on a stack of them: through ``torch.func.vmap``, or in a loop.

vmap cannot follow everything that a network may do: recurrent layers, a forward pass that branches on values or asks
for ``.item()``, activation checkpointing, custom autograd functions. What it cannot follow a ``Mapper`` evaluates
element by element, differentiated by plain autograd, and says so once. Where vmap runs it is compared with the loop on
the first elements, in values and in gradients, before it is believed.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.checks import kind_of
from mfoc.derivatives import gradients, transforming, without_fast_path
from mfoc.draws import draws, watched
from mfoc.errors import InvalidType, InvalidValue
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

Function = Callable[..., Tree]

_COMPARED = 2  # elements on which vmap is compared with the loop


class Mapper:
    """Maps functions over the leading axis of trees of tensors.

    It remembers what it has seen, so one is for functions of one kind: those of one network, say.

    Args:
        what: what the functions are, for messages: "net".
        each: what an element is, for messages: "draw".
        unfit: why vmap is not to be tried, if it is not; see ``misled``.
    """

    def __init__(self, what: str, each: str, *, unfit: str = "") -> None:
        self._unfit = unfit
        self._what, self._each, self._told = what, each, set[str]()
        self._seen: set[str] = set()  # ways in which vmap and the loop have been compared,
        self._loops: set[str] = set()  # and those that need the loop: gradients may not where values do
        self._quiet = False  # silencing costs as much as a small layer

    @property
    def looped(self) -> bool:
        """Whether elements have been evaluated one after another."""
        return bool(self._unfit or self._loops)

    def __call__(self, function: Function, *trees: Tree) -> Tree:
        """The values of a function on each element, stacked: ``[n, ...]``.

        Args:
            function: of one element of each tree, to a tree of tensors; pure.
            *trees: trees of tensors ``[n, ...]``.

        Raises:
            InvalidType: the function returns something else than tensors.
            InvalidValue: it draws random numbers, cannot be differentiated, or what it returns has another shape for
                another element.
        """
        onward = torch.is_grad_enabled()
        return self._run(_Values([onward and leaf.requires_grad for leaf in tree.tensors(trees)]), function, trees)

    def gradient_and_value(self, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients ``[n, d]`` and values ``[n]`` of a function of one row of x to a number, without a graph.

        Raises:
            InvalidType, InvalidValue: as in a call.
        """
        found: tuple[Tensor, Tensor] = self._run(_Gradients(), function, (x.detach(),))
        return found

    def beside(self, *, unfit: str = "") -> Mapper:
        """One for other functions of the same network: what one of them has said the other does not repeat."""
        other = Mapper(self._what, self._each, unfit=unfit)
        other._told = self._told
        return other

    def _run(self, way: _Way, function: Function, trees: Sequence[Tree]) -> Tree:
        with without_fast_path():
            count = len(tree.leaves(trees)[0])
            if self._unfit or way.name in self._loops:
                found = way.loop(function, trees)
                self._tell(count, self._unfit)
                return found
            nested = transforming()
            reason: Any = None
            if not nested and count and way.name not in self._seen:
                reason = self._distrust(way, function, trees)
                self._seen.add(way.name)
            if reason is None:
                try:
                    with _quiet() if self._quiet else nullcontext():
                        return way.vmap(function, trees)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # whatever the user's functions say to tensors that vmap hands them
                    reason = error
            found = way.loop(function, trees)  # its errors are the user's own
            if not nested:  # what fails within another transform may be right outside of it
                self._loops.add(way.name)
                self._tell(count, reason)
            return found

    def _distrust(self, way: _Way, function: Function, trees: Sequence[Tree]) -> Any:
        """Why vmap is not to be believed, seen on the first elements: its error, or other numbers. None: it is."""
        few = [tree.map(_first, each) for each in trees]
        drawn = watched()
        try:
            values, slopes = way.evidence(way.loop, function, few)
            try:
                plain = values, slopes()
            except RuntimeError as error:
                raise InvalidValue(f"{self._what} cannot be differentiated by torch.autograd.grad: {error}") from error
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    values, slopes = way.evidence(way.vmap, function, few)
                    mapped = values, slopes()
                self._quiet = self._quiet or any("performance drop" in str(each.message) for each in said)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # as above
                return error
        finally:
            if drawn() and draws(lambda: way.evidence(way.loop, function, few)):
                raise InvalidValue(
                    f"{self._what} draws random numbers in its forward pass (dropout?); costs must be pure: switch it "
                    "off, by .eval() say"
                )
        return None if all(map(_agree, plain, mapped)) else "it computes something else"

    def _tell(self, count: int, reason: Any) -> None:
        if self._told or count < 2:
            return
        self._told.add(self._what)
        said = str(reason).strip().split("\n")[0].split(". ")[0][:160] or kind_of(reason)
        logger.warning(
            "%s runs once for each %s, one after another, and so takes about as many times as long: torch.func.vmap "
            "cannot follow it (%s)", self._what, self._each, said,
        )  # fmt: skip


class _Values:
    """The values of a function; they derive into those of its leaves that are ``graded``.

    Which ones is part of the name: the derivative in some may be right, and fail in others.
    """

    def __init__(self, graded: Sequence[bool]) -> None:
        self._graded = any(graded)
        self.name = "".join("01"[each] for each in graded) if self._graded else "values"

    def vmap(self, function: Function, trees: Sequence[Tree]) -> Tree:
        """All elements at once."""
        return torch.func.vmap(function)(*trees)

    def loop(self, function: Function, trees: Sequence[Tree]) -> Tree:
        """One after another, stacked."""
        columns = [leaf.unbind() for leaf in tree.leaves(trees)]
        rows = [tree.rebuild(list(trees), row) for row in zip(*columns, strict=True)]
        return _stacked([function(*row) for row in rows])

    def evidence(self, run: Function, function: Function, few: Sequence[Tree]) -> _Evidence:
        """The values of one way of running, and a function to one product with the Jacobian where they derive."""
        values = tree.leaves(run(function, few))
        outputs = [value for value in values if value.requires_grad]
        inputs = [leaf for leaf in tree.tensors(few) if leaf.requires_grad]
        if not self._graded or not outputs:
            return values, list
        seeds = [torch.arange(1, v.numel() + 1, device=v.device).cos().to(v.dtype).view(v.shape) for v in outputs]
        return values, lambda: gradients(outputs, inputs, seeds)


class _Gradients:
    """The gradients of a function to a number, and its values, without a graph."""

    name = "gradients"

    def vmap(self, function: Function, trees: Sequence[Tree]) -> Tree:
        """All elements at once."""
        return torch.func.vmap(torch.func.grad_and_value(function))(*trees)

    def loop(self, function: Function, trees: Sequence[Tree]) -> Tree:
        """By plain autograd: torch.func's gradients know no checkpointing, for one."""
        with torch.enable_grad():
            x = tree.free(trees[0])
            value = _Values([True]).loop(function, (x,))
            return gradients(value, [x])[0], value.detach()

    def evidence(self, run: Function, function: Function, few: Sequence[Tree]) -> _Evidence:
        """What one way of running gives."""
        slope, value = run(function, few)
        return [value], lambda: [slope]


_Way = _Values | _Gradients
_Evidence = tuple[list[Tensor], Callable[[], list[Tensor]]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that vmap runs one operation in a loop: that is no worse than all of them in one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        yield


def _first(leaf: Tensor) -> Tensor:
    """The first elements, as leaves of the graph."""
    few = leaf[:_COMPARED].detach()
    return few.requires_grad_() if leaf.requires_grad else few


def _stacked(found: Sequence[Tree]) -> Tree:
    for leaf in tree.leaves(found):
        if not isinstance(leaf, Tensor):
            raise InvalidType(
                f"a forward pass returned {kind_of(found[0])} that holds {kind_of(leaf)}; expected a tensor, or "
                "tuples, lists or dicts of tensors: leave it out, in a module around this one whose forward pass "
                "returns the tensors alone"
            )
    shapes = [[leaf.shape for leaf in tree.leaves(each)] for each in found]
    for other in shapes:
        if other != shapes[0]:
            raise InvalidValue(
                f"a forward pass returned shapes {[tuple(s) for s in shapes[0]]} at one set of weights and "
                f"{[tuple(s) for s in other]} at another; expected the same"
            )
    return tree.map(lambda *leaves: torch.stack(leaves), *found)


def _agree(plain: Sequence[Tensor], mapped: Sequence[Tensor]) -> bool:
    """Whether tensors are equal up to rounding, each beside the largest of its kind."""
    if [(a.shape, a.dtype) for a in plain] != [(b.shape, b.dtype) for b in mapped]:
        return False
    exact = [(a, b) for a, b in zip(plain, mapped, strict=True) if not tree.differentiable(a)]
    real = [(a.detach(), b.detach()) for a, b in zip(plain, mapped, strict=True) if tree.differentiable(a)]
    if not all(torch.equal(a, b) for a, b in exact):
        return False
    size = max((float(a.abs().nan_to_num(0.0, 0.0, 0.0).max()) for a, _ in real if a.numel()), default=0.0)
    return all(
        torch.allclose(a, b, rtol=r, atol=r * size, equal_nan=True)
        for a, b in real
        for r in [min(0.1, 10 * torch.finfo(a.dtype).eps ** 0.5)]
    )


def misled(module: nn.Module) -> str:
    """Why vmap over the inputs computes something else without saying so; empty when it does not.

    It forgets the padding rows of embeddings, and the first inputs need not have one for that to be seen.
    """
    kinds = nn.Embedding | nn.EmbeddingBag
    padded = any(isinstance(part, kinds) and part.padding_idx is not None for part in module.modules())
    return "it forgets that the padding row of an embedding is not trained" if padded else ""

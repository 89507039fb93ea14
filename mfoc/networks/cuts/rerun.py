"""A network run piece by piece: from its input up to the next cut, without the blocks whose outputs are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from mfoc import tree
from mfoc.derivatives import without_fast_path
from mfoc.errors import InvalidValue
from mfoc.networks.arguments import Arguments
from mfoc.networks.cuts.axes import Axes
from mfoc.networks.cuts.owners import owners
from mfoc.networks.inspection import copied
from mfoc.tree import Tree

Call = Callable[..., Any]


class _Reached(BaseException):
    """The network has come to the end of a stage; not an ``Exception``, which a forward pass might catch."""


class Rerun:
    """A network that is run piece by piece: what its stages share, and no copy of a stage has for itself.

    Attributes:
        net: the network.
        names: the blocks at which it is cut.
        trained: names of the parameters that require grad, also where a control stands in their place.
        owners: the stages of each parameter.
        needed: for each cut the blocks whose outputs later stages need; None until it is known: all are carried.
        shapes: an example of each block's output, from when that was found.
        along: the axis of the particles of each leaf of these.
        axes: where the particles lie in what is carried.
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        self.net, self.names = net, list(names)
        self.arguments = Arguments.of(net)
        self.trained = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
        self.owners = owners(net, names)
        self.needed: list[set[int]] | None = None
        self.shapes: list[Tree] = []
        self.along: list[list[int]] = []
        self.axes = Axes()
        self._private: Rerun | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Rerun:
        return self

    def private(self) -> Rerun:
        """The same on a copy of the network, one for all stages."""
        if self._private is None:
            self._private = Rerun(copied(self.net), self.names)
        return self._private

    @contextmanager
    def fresh_parameters(self) -> Iterator[dict[str, Tensor]]:
        """The parameters that are trained, for the time being as new leaves that require grad."""
        slots = [(part, leaf) for part in self.net.modules() for leaf, p in part._parameters.items() if p is not None]
        before = [part._parameters[leaf] for part, leaf in slots]
        held = {id(p): tree.free(p) for k, p in self.net.named_parameters() if k in self.trained}
        names = {key: held[id(p)] for key, p in self.net.named_parameters() if key in self.trained}
        try:
            for part, leaf in slots:
                part._parameters[leaf] = held.get(id(part._parameters[leaf]), part._parameters[leaf])  # type: ignore
            yield names
        finally:
            for (part, leaf), value in zip(slots, before, strict=True):
                part._parameters[leaf] = value

    def label(self, block: int, stage: int) -> str:
        """What a block's output is called in the state that leaves a stage."""
        name = self.names[block]
        return "value" if block == stage else f"{name}:" if name in ("input", "value") else name

    # ---- running

    def run(self, x: Tree, instead: Call, net: nn.Module | None = None) -> Any:
        """The network's output on what enters it; ``instead(block, own, args, kwargs)`` stands for its blocks.

        ``net`` is the network with other weights; that of this object when None.
        """
        x, net = _cloned(x), self.net if net is None else net
        blocks = [net.get_submodule(name) for name in self.names]
        with _replaced(blocks, instead), without_fast_path(), _own_buffers(net):
            args, kwargs = self.arguments.given(x)
            return net(*args, **kwargs)

    def step(self, stage: int, state: Tree, net: nn.Module | None = None) -> Tree:
        """The next state: the network's output after the last stage."""
        key = None if self.needed is None else tuple(map(frozenset, self.needed))
        move = partial(self._step, net, stage)
        return self.axes.step(stage, key, move, state, last=stage == len(self.names) - 1)

    def _step(self, net: nn.Module | None, stage: int, state: Tree, particles: int) -> Tree:
        x = state["input"] if stage else state
        held = {k: state[self.label(k, stage - 1)] for k in range(stage) if self.label(k, stage - 1) in state}
        ran: list[int] = []
        reached: list[Any] = []
        last = stage == len(self.names) - 1

        def instead(block: int, own: Call, args: Any, kwargs: Any) -> Any:
            ran.append(block)
            if block < stage:
                return (
                    _cloned(held[block]) if block in held else _like(self.shapes[block], self.along[block], particles)
                )
            found = own(*args, **kwargs)
            if not last:
                reached.append(found)
                raise _Reached
            return found

        output = None
        with suppress(_Reached):
            output = self.run(x, instead, net)
        if ran != list(range(stage + 1)) or (not last and not reached):
            self.refuse_order(ran)
        if last:
            return output
        held[stage] = reached[0]
        kept = range(stage + 1) if self.needed is None else sorted(self.needed[stage])
        return {"input": x} | {self.label(k, stage): held[k] for k in kept if k in held}

    def refuse_order(self, ran: Sequence[int]) -> None:
        """Refuses blocks that ran in another order, or not through a call."""
        order = [self.names[k] for k in ran]
        raise InvalidValue(
            f"stages is {self.names}; in the forward pass these modules run as {order}. Each has to be called once, in "
            "this order"
        )


@contextmanager
def _replaced(blocks: Sequence[nn.Module], instead: Call) -> Iterator[None]:
    """Calls of the blocks, their hooks included, go to ``instead``."""

    def taking(block: int, own: Call) -> Call:
        return lambda *args, **kwargs: instead(block, own, args, kwargs)

    for k, block in enumerate(blocks):
        # It is what a call of a module looks up on the instance, and what runs its hooks.
        block.__dict__["_call_impl"] = taking(k, getattr(block, "_call_impl"))  # noqa: B009
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("_call_impl", None)


@contextmanager
def _own_buffers(net: nn.Module) -> Iterator[None]:
    """With copies of the buffers, which a forward pass may advance."""
    slots = [
        (part._buffers, key) for part in net.modules() for key, value in part._buffers.items() if value is not None
    ]
    before = [held[key] for held, key in slots]
    for (held, key), value in zip(slots, before, strict=True):
        held[key] = value.clone()  # type: ignore[union-attr]
    try:
        yield
    finally:
        for (held, key), value in zip(slots, before, strict=True):
            held[key] = value


def _cloned(x: Tree) -> Tree:
    """A copy that a forward pass may write into."""
    return tree.map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, x)


def _like(example: Tree, along: Sequence[int], particles: int) -> Tree:
    """Zeros in place of an output that nothing needs."""

    def made(leaf: Any, axis: int) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        return leaf.new_zeros([particles if k == axis else size for k, size in enumerate(leaf.shape)])

    return tree.rebuild(example, map(made, tree.leaves(example), along))

"""Problems whose stages are compiled: one graph for each kind of stage, not for each stage.

``torch.compile`` makes a graph anew where an integer argument that a function uses has another value, up to a limit (8 by
default) from where on it runs uncompiled. The stage t is such an argument. What works, and how many graphs it takes (of
each of them several: with gradients, without, for another number of particles):

* dynamics that do not use t: one, for any number of stages, by ``torch.compile(dynamics)`` as it is;
* dynamics that calculate with t, ``1 + 0.1 * t`` or ``table[t]`` of a tensor, and drifts of ``mfoc.continuous``: two;
* dynamics that take t apart, ``layers[t]`` of a list or ``if t == 3``: one for each value that makes a difference. Those
  of ``mfoc.from_module`` are such. ``mfoc.compiled(problem)`` makes one for each ``problem.kind``.

A compiled function has no second derivative unless the backend is "eager" (``DDP``, ``NewtonCG``, curvatures in
``certify``). ``mfoc.from_module`` takes a compiled network for the network that it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from mfoc.checks import check_instance
from mfoc.problem import Problem
from mfoc.tree import Tree


def compiled(problem: Problem[Any], **options: Any) -> Problem[Any]:
    """The same problem, whose dynamics run compiled: a graph for each kind of stage.

    Stages of one ``problem.kind`` compute the same function of (x, u, z), so one is compiled in the place of all. The
    values are those of the problem up to rounding (to the bit with ``backend="eager"``).

        deep = mfoc.compiled(mfoc.from_module(net, loss))

    Args:
        problem: a problem; without ``kind`` its dynamics are compiled as they are, see ``mfoc.compilation``.
        **options: what ``torch.compile`` takes: ``backend``, ``mode``, ``dynamic``, ``fullgraph``.

    Raises:
        InvalidType: it is no problem.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    return problem.rebuilt(lambda own: replace(own, dynamics=_by_kind(own, options)))


def _by_kind(problem: Problem[Any], options: dict[str, Any]) -> _Compiled:
    first: dict[Hashable, int] = {}
    stages = range(problem.stages)
    names = [t if problem.kind is None else problem.kind(t) for t in stages]
    with _validation_kept():
        function = torch.compile(problem.dynamics, **options)
    return _Compiled(function, tuple(first.setdefault(name, t) for t, name in zip(stages, names, strict=True)))


@dataclass(frozen=True)
class _Compiled:
    """Dynamics of stages, each of which is computed as the first of its kind."""

    function: Callable[..., Tree]
    stands_for: tuple[int, ...]

    def __call__(self, t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        return self.function(self.stands_for[t], x, u, z)


@contextmanager
def _validation_kept() -> Iterator[None]:
    """torch.compile switches the validation of torch.distributions off, in all the process and for good."""
    kept = torch.distributions.Distribution._validate_args
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(kept)

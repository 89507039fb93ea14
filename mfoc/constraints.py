"""Constraints on states and controls: what they are, and the augmented Lagrangian's term for each.

With multipliers l and a penalty m the term of c = 0 is <l, c> + m/2 |c|^2, and that of c <= 0 (Powell, Hestenes and
Rockafellar; Nocedal & Wright 2006, eqs. 17.36 and 17.65) is (|max(0, l + m c)|^2 - |l|^2) / (2 m). The next multipliers
are l + m c, and max(0, l + m c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor

from mfoc.checks import check_callable, check_flag, check_signature, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.law import mean

Terms = Union["Constraint", Sequence["Constraint"], None]


@dataclass(frozen=True, eq=False)
class Constraint:
    """A constraint; make an ``Equality`` or an ``Inequality``.

    Attributes:
        function: ``c(x, z) -> [N]`` or ``[N, k]`` as a problem's ``terminal`` constraint, ``c(t, x, u, z)`` as a
            ``path`` constraint.
        in_mean: E c is constrained, not each particle's c.
    """

    function: Callable[..., Tensor]
    in_mean: bool = False

    def __post_init__(self) -> None:
        check_callable("a function c(x, z), or c(t, x, u, z) along the path", function=self.function)
        check_flag(in_mean=self.in_mean)

    def of(self, n: int, name: str, *arguments: Any) -> Tensor:
        """Its value ``[N, k]``; of a constraint in mean ``[k]``.

        Raises:
            InvalidType, InvalidValue: the function returned something else.
        """
        value = self.function(*arguments)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = f"a {value.dtype} tensor" if isinstance(value, Tensor) else kind_of(value)
            cure = ": c itself, not whether c <= 0" if found == "a torch.bool tensor" else ""
            raise InvalidType(f"{name} returned {found}; expected a floating-point tensor [{n}] or [{n}, k]{cure}")
        if value.dim() not in (1, 2) or len(value) != n:
            raise InvalidValue(f"{name} returned shape {tuple(value.shape)}; expected one row per particle, [{n}, k]")
        value = value.reshape(n, -1)
        return mean(value) if self.in_mean else value

    def term(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """The augmented Lagrangian's term, summed over the last axis."""
        raise NotImplementedError

    def next_multiplier(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """The multiplier after a step."""
        raise NotImplementedError

    def missed(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """What is missing to c = 0; or to c <= 0 with a multiplier that is zero where c < 0."""
        raise NotImplementedError


class Equality(Constraint):
    """The constraint c = 0, of each entry of what the function returns.

    Attributes:
        function: ``c(x, z) -> [N]`` or ``[N, k]`` as ``Problem(terminal=...)``, ``c(t, x, u, z)`` as
            ``Problem(path=...)``, which holds at every stage. ``mfoc.AugmentedLagrangian(solver)`` meets it.
        in_mean: the population's mean E c is constrained, not each particle's c.
    """

    def term(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """See ``Constraint``."""
        return (multiplier * value + penalty / 2 * value.square()).sum(-1)

    def next_multiplier(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """See ``Constraint``."""
        return multiplier + penalty * value

    def missed(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """See ``Constraint``."""
        return value


class Inequality(Constraint):
    """The constraint c <= 0, of each entry of what the function returns.

    Attributes:
        function: ``c(x, z) -> [N]`` or ``[N, k]`` as ``Problem(terminal=...)``, ``c(t, x, u, z)`` as
            ``Problem(path=...)``, which holds at every stage. ``mfoc.AugmentedLagrangian(solver)`` meets it.
        in_mean: the population's mean E c is constrained, not each particle's c.
    """

    def term(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """See ``Constraint``."""
        if penalty == 0:
            return (multiplier * value).sum(-1)
        return ((multiplier + penalty * value).clamp_min(0).square() - multiplier.square()).sum(-1) / (2 * penalty)

    def next_multiplier(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """See ``Constraint``."""
        return (multiplier + penalty * value).clamp_min(0)

    def missed(self, value: Tensor, multiplier: Tensor, penalty: float) -> Tensor:
        """See ``Constraint``."""
        return torch.maximum(value, -multiplier / penalty)


def listed(constraints: Terms, name: str, arguments: Sequence[str]) -> tuple[Constraint, ...]:
    """The constraints as a tuple.

    Raises:
        InvalidType: one is none, or its function takes other arguments.
    """
    if constraints is None:
        return ()
    found = tuple(constraints) if isinstance(constraints, list | tuple) else (constraints,)
    for each in found:
        if not isinstance(each, Equality | Inequality):
            raise InvalidType(
                f"{name} is {kind_of(each)}; expected mfoc.Equality(c) for c = 0, mfoc.Inequality(c) for c <= 0, or a "
                "list of them"
            )
        functions: dict[str, Any] = {f"{name} constraint": each.function}
        check_signature(arguments, **functions)
    return found

"""Whether two supports are one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions.constraints import Constraint

# Of these an open and a closed one have the same map from the line.
_ALIKE = {"_GreaterThanEq": "_GreaterThan", "_HalfOpenInterval": "_Interval"}


def same_support(left: Any, right: Any) -> bool:
    """Whether two constraints are one: of one kind, with equal bounds."""
    if not isinstance(left, Constraint):
        if isinstance(left, list | tuple):
            return len(left) == len(right) and all(same_support(a, b) for a, b in zip(left, right, strict=True))
        try:
            equal = left == right
            return bool(equal.all()) if isinstance(equal, Tensor) else bool(equal)
        except RuntimeError:  # bounds of shapes that do not broadcast
            return False
    kinds = [_ALIKE.get(name, name) for name in (type(left).__name__, type(right).__name__)]
    if kinds[0] != kinds[1] or vars(left).keys() != vars(right).keys():
        return False
    return all(same_support(value, vars(right)[key]) for key, value in vars(left).items())

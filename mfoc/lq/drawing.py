"""How paths of the mean draw themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mfoc.errors import InvalidValue


def mean_path(states: Tensor, controls: Tensor, cost: Tensor, title: str) -> Any:
    """A figure of states ``[T+1, n]`` and controls ``[T or T+1, m]`` over the nodes.

    Raises:
        InvalidValue: they have leading axes, of several problems.
    """
    if states.dim() != 2:
        raise InvalidValue(f"states has shape {tuple(states.shape)}, of several problems; take one of them to draw")
    from mfoc.drawing.fields import paths

    return paths(
        {"m mean state m": states, "u mean control u": controls}, None, f"{title}, cost {float(cost):.4g}", "node"
    )

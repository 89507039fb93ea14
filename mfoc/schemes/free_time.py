"""A final time that is solved for: time is stretched to [0, 1], and its length is a control that all stages share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.bounds import Box
from mfoc.checks import check_callable, check_positive
from mfoc.constraints import listed
from mfoc.errors import InvalidType, InvalidValue
from mfoc.problem import STAGE, Schedule, per_stage
from mfoc.schemes.noise import euler_maruyama
from mfoc.tree import Tree


@dataclass(frozen=True)
class FreeTime:
    """The end time of ``continuous(T=FreeTime(...))``, solved for together with the controls.

    ``solution.controls["T"]`` is what was found.

    The problem's controls are ``{"controls": those given, "T": the end time}``, its stages share T, and T is bounded,
    since it may run away to zero or to infinity. Solvers see one control tied across the stages: a per-stage minimum
    principle does not apply. With ``per_particle`` each particle has an end time of its own, and functions receive the
    times ``[N]`` (``t[:, None] * x``). They receive the time as a tensor: ``torch.sin(t)``; ``math.sin(t)`` would hide
    from J's gradient that t depends on T, and is refused.

    Attributes:
        start: the first guess.
        least: the least end time.
        most: the largest; infinite when None.
    """

    start: float
    least: float
    most: float | None = None

    def __post_init__(self) -> None:
        check_positive(start=self.start, least=self.least)
        check_positive(most=self.most, optional=True)
        if not self.least <= self.start <= self.limit:
            raise InvalidValue(f"start is {self.start}; expected {self.least} <= start <= {self.limit}")

    @property
    def limit(self) -> float:
        """The largest end time."""
        return math.inf if self.most is None else self.most

    def stretched(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The arguments of ``continuous`` for a problem on [0, 1] whose length is a control, from those on [0, T]."""
        controls, schedule = settings["controls"], settings["schedule"]
        if settings["horizon"] is None and schedule is per_stage and isinstance(controls, list | tuple):
            settings["horizon"] = len(controls)
        per_particle, bounds = settings["per_particle"], settings["bounds"]
        if isinstance(bounds, Mapping) and schedule is per_stage:
            bounds = [bounds] * len(controls)
        own = Box(self.least, self.limit)
        leaf = tree.tensors(controls)[0]
        length = torch.full(leaf.shape[:1] if per_particle else (), self.start, dtype=leaf.dtype, device=leaf.device)
        scheme, diffusion = settings["scheme"], settings["diffusion"]
        if isinstance(scheme, euler_maruyama):
            scheme = euler_maruyama(_stretched(scheme.diffusion, 0.5), scheme.noise)
        return {
            **settings,
            "drift": _stretched(settings["drift"], 1.0),
            "running_cost": _stretched(settings["running_cost"], 1.0),
            "diffusion": _stretched(diffusion, 0.5),
            "scheme": scheme,
            "controls": {"controls": controls, "T": length},
            "schedule": _with_length(schedule),
            "bounds": _with_end(bounds, own) if callable(bounds) else {"controls": bounds, "T": own},
            "path": [
                replace(each, function=_stretched(each.function, 0.0))
                for each in listed(settings["path"], "path", STAGE)
            ],
            "T": 1.0,
        }


def _with_length(schedule: Schedule) -> Schedule:
    check_callable("a function", schedule=schedule)
    return lambda controls, t: {"controls": schedule(controls["controls"], t), "T": controls["T"]}


def _with_end(rule: Any, end: Box) -> Any:
    """A rule ``(name, leaf) -> set`` for the controls, and the set of the end time."""
    return lambda name, leaf: end if name == "T" else rule(name.removeprefix("controls."), leaf)


class _Time(Tensor):
    """A time that depends on T; to make a number of it, a constant, is refused. What is computed of it is a Tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001  as Parameter

    def __float__(self) -> float:
        raise InvalidType(
            "a function makes a number of the time t, as math.sin(t), float(t) and t.item() do; with T=FreeTime(...) t "
            "depends on what is solved for: torch.sin(t)"
        )

    item = __float__


def _stretched(function: Any, power: float) -> Any:
    """A function of the time in [0, T] as one of its share, times T to a power; a constant likewise."""
    if function is None:
        return None

    def stretched(s: float, x: Tree, u: Tree, z: Tree) -> Tree:
        scale = u["T"] ** power
        if not callable(function):
            return _scaled(torch.full_like(x, 1.0) * function, scale)
        value = function((u["T"] * s).as_subclass(_Time), x, u["controls"], z)
        return tree.map(lambda leaf: _scaled(leaf, scale) if tree.differentiable(leaf) else leaf, value)

    return stretched


def _scaled(leaf: Tensor, scale: Tensor) -> Tensor:
    return leaf * (scale.view(-1, *[1] * (leaf.dim() - 1)) if scale.dim() else scale)

"""Stein variational gradient descent as McKean-Vlasov dynamics: x + h phi(x, law of the cloud)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mfoc import InvalidValue
from mfoc.checks import check_instance, check_non_negative
from mfoc.law import jointly
from paradigms.bayesian.density.density import LogDensity
from paradigms.bayesian.samplers.kernels import RBF, Kernel
from paradigms.bayesian.samplers.runs import Sampler, State, Steps, as_density, points, sampler


@runtime_checkable
class Rule(Protocol):
    """How a cloud moves along a direction; its memory is part of the state."""

    def memory(self, x: Tensor) -> dict[str, Tensor]:
        """The memory before the first step, tensors ``[n, d]``."""

    def move(self, t: int, x: Tensor, phi: Tensor, h: Tensor, memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next points, as "x", and the next memory."""


@dataclass(frozen=True)
class PlainRule:
    """The step x + h phi: explicit Euler, and ``torch.optim.SGD``."""

    def memory(self, x: Tensor) -> dict[str, Tensor]:
        """See ``Rule``."""
        return {}

    def move(self, t: int, x: Tensor, phi: Tensor, h: Tensor, memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Rule``."""
        return {"x": x + h * phi}


@dataclass(frozen=True)
class AdamRule:
    """The steps of ``torch.optim.Adam`` along the direction (Kingma & Ba 2015, alg. 1).

    Attributes:
        betas: decay of the two moments.
        eps: added to the root of the second.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_instance(tuple | list, "two numbers in [0, 1)", betas=self.betas)
        for beta in self.betas:
            check_non_negative(betas=beta)
        if len(self.betas) != 2 or max(self.betas) >= 1:
            raise InvalidValue(f"betas is {self.betas!r}; expected two numbers in [0, 1)")
        check_non_negative(eps=self.eps)

    def memory(self, x: Tensor) -> dict[str, Tensor]:
        """See ``Rule``."""
        return {"first": torch.zeros_like(x), "second": torch.zeros_like(x)}

    def move(self, t: int, x: Tensor, phi: Tensor, h: Tensor, memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Rule``."""
        b1, b2 = self.betas
        first = b1 * memory["first"] + (1 - b1) * phi
        second = b2 * memory["second"] + (1 - b2) * phi.square()
        root = _root(second) / math.sqrt(1 - b2 ** (t + 1)) + self.eps
        return {"x": x + h / (1 - b1 ** (t + 1)) * first / root, "first": first, "second": second}


@dataclass(frozen=True)
class AdaGradRule:
    """Liu & Wang's (2016) AdaGrad with momentum: g <- decay g + (1 - decay) phi^2, then x + h phi / (eps + sqrt g).

    Attributes:
        decay: of the mean square; the first step takes phi^2 itself.
        eps: added to its root.
    """

    decay: float = 0.9
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_non_negative(decay=self.decay, eps=self.eps)

    def memory(self, x: Tensor) -> dict[str, Tensor]:
        """See ``Rule``."""
        return {"square": torch.zeros_like(x)}

    def move(self, t: int, x: Tensor, phi: Tensor, h: Tensor, memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Rule``."""
        square = phi.square() if t == 0 else self.decay * memory["square"] + (1 - self.decay) * phi.square()
        return {"x": x + h * phi / (self.eps + _root(square)), "square": square}


def _root(x: Tensor) -> Tensor:
    """A root whose derivative at zero is zero, not infinite."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x.sqrt()
    return torch.where(x > 0, x.where(x > 0, torch.ones_like(x)).sqrt(), 0)


@dataclass(frozen=True)
class Stein:
    """One step of SVGD, a ``Flow``.

    Attributes:
        kernel: gives the direction.
        rule: how the cloud moves along it.
    """

    kernel: Kernel
    rule: Rule

    def __post_init__(self) -> None:
        check_instance(Kernel, "a kernel such as RBF()", kernel=self.kernel)
        check_instance(Rule, "a rule such as AdamRule()", rule=self.rule)

    def start(self, density: LogDensity, x: Tensor) -> State:
        """See ``Flow``."""
        memory = self.rule.memory(x)
        return {"x": x, **memory} if memory else x

    def draw(self, density: LogDensity, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """See ``Flow``; there is no noise."""
        return {}

    def step(self, density: LogDensity, t: int, state: State, h: Tensor, z: Mapping[str, Tensor]) -> State:
        """See ``Flow``."""
        x, remembers = points(state), isinstance(state, dict)
        direction = jointly(self.kernel.direction, x, density.score(x))
        moved = self.rule.move(t, x, direction, h, state if remembers else {})
        return moved if remembers else moved["x"]


def svgd(
    target: Any,
    *,
    step: Steps,
    kernel: Kernel | None = None,
    rule: Rule | None = None,
    steps: int = 100,
    particles: int | Tensor = 50,
    init: str | None = None,
    seed: int = 0,
) -> Sampler:
    """Stein variational gradient descent: Liu & Wang (2016), arXiv:1608.04471, alg. 1.

    Args:
        target: a ``LogDensity``, or a function of ``[n, d]`` when ``particles`` are given as a tensor.
        step: the step size or its schedule; see ``langevin``.
        kernel: ``RBF()`` with the median heuristic when None, or ``IMQ()``; ``PyroRBF()`` and ``PyroIMQ()`` are Pyro's.
        rule: ``PlainRule()`` when None; ``AdamRule()`` and ``AdaGradRule()`` scale the direction by coordinate.
        steps: the horizon T.
        particles: how many, or where they start ``[n, d]``.
        init: where that many start; see ``langevin``.
        seed: of the starting points.

    Returns:
        A formulation; run it with ``mfoc.rollout`` or ``sample``.

    Raises:
        InvalidType, InvalidValue: wrong arguments, fewer than two particles, all in one point, or a log density that is
            not finite.
    """
    kernel, rule = RBF() if kernel is None else kernel, PlainRule() if rule is None else rule
    check_instance(Kernel, "a kernel such as RBF()", kernel=kernel)
    check_instance(Rule, "a rule such as AdamRule()", rule=rule)
    made = sampler(as_density(target, particles), Stein(kernel, rule), step, steps, particles, seed, init)
    if len(made.start) < 2:
        raise InvalidValue("SVGD needs at least two particles: they find the mode alone")
    if bool((made.start == made.start[0]).all()):
        raise InvalidValue(
            "particles: all start in one point, where no kernel drives them apart; spread them, or pass their number"
        )
    return made

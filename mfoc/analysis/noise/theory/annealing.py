"""The optimal learning rate and momentum of a noisy quadratic: laws that CSGD and CMSGD follow.

After Q. Li, C. Tai & W. E (2017), "Stochastic modified equations and adaptive stochastic gradient algorithms",
arXiv:1511.06251, sec. 4. For f(x) = a/2 (x - b)^2, gradients with variance Sigma and a learning rate u eta, u in
[0, 1], the expected loss m = E f of the modified equation obeys

    dm/dt = -2 a u m + a eta Sigma u^2 / 2,     t = eta times the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mfoc.analysis.noise.theory.quantities import as_broadcast, as_given, as_tensors
from mfoc.checks import check_non_negative, check_positive
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, INK, new_axes

Time = TypeVar("Time", float, Tensor)


def annealing_control(
    curvature: float | Tensor, noise: float | Tensor, m: float | Tensor, lr: float | Tensor
) -> Tensor | float:
    """The factor u* in [0, 1] of the learning rate that makes the expected loss fall fastest.

    u* = min(1, 2 m / (eta Sigma)) where a > 0, and 1 where a <= 0 (Li, Tai & E 2017, sec. 4.1). The right-hand side of
    dm/dt is least there; as m then obeys an equation of its own, no schedule has a lower m at any time. The arguments
    are broadcast against one another.

    Args:
        curvature: a, any sign.
        noise: variance Sigma >= 0 of the gradient at the batch size used.
        m: expected loss above the minimum. Where a > 0, what is below zero counts as zero, as estimates may be.
        lr: largest learning rate eta > 0.

    Returns:
        u*, a float where all arguments are numbers, else a tensor ``[...]``. It is 1 where Sigma is 0.

    Raises:
        InvalidType: neither a number nor a floating-point tensor.
        InvalidValue: not finite, a negative noise, lr <= 0, mixed dtypes, or shapes that do not broadcast.
    """
    a, s, m_, eta = _checked(curvature, noise, m, lr)
    greedy = torch.where(s > 0, 2 * m_.clamp(min=0) / (eta * s), 1.0).clamp(max=1)
    return as_given(torch.where(a > 0, greedy, 1.0), curvature, noise, m, lr)


def momentum_control(
    curvature: float | Tensor, noise: float | Tensor, m: float | Tensor, lr: float | Tensor
) -> Tensor | float:
    """The momentum mu* of heavy-ball SGD: critical damping far from the minimum, less where the noise counts.

    mu* = min(max(0, 1 - 2 sqrt(eta a)), max(0, 1 - eta Sigma / (4 m))) where a > 0, and 1 where a <= 0 (Li, Tai & E
    2017, sec. 4.2). The first has the fastest decay of E x under the modified equation; with the second the loss that
    the noise sustains, eta Sigma / (4 (1 - mu)), is not above m.

    Args:
        curvature: a, any sign.
        noise: variance Sigma >= 0 of the gradient at the batch size used.
        m: expected loss above the minimum. Where a > 0, what is below zero counts as zero.
        lr: learning rate eta > 0.

    Returns:
        mu* in [0, 1], a float where all arguments are numbers, else a tensor ``[...]``.

    Raises:
        InvalidType, InvalidValue: as ``annealing_control``.
    """
    a, s, m_, eta = _checked(curvature, noise, m, lr)
    critical = (1 - 2 * (eta * a.clamp(min=0)).sqrt()).clamp(min=0)
    quiet = torch.where(s > 0, 1 - eta * s / (4 * m_.clamp(min=0)), 1.0).clamp(min=0)  # -inf, then 0, where m is 0
    return as_given(torch.where(a > 0, torch.minimum(critical, quiet), 1.0), curvature, noise, m, lr)


@dataclass(frozen=True, eq=False)
class Annealing:
    """The optimal schedule of the learning rate on a quadratic; made by ``optimal_annealing``.

    Attributes:
        curvature: a.
        noise: Sigma.
        m0: expected loss at time 0.
        lr: eta, which the control multiplies.
        switch: the time t* = eta times steps up to which the full rate is best; inf where it is for ever.
    """

    curvature: float
    noise: float
    m0: float
    lr: float
    switch: float

    def control(self, t: Time) -> Time:
        """The factor u*(t) of the learning rate at the times t ``[...]``, or at one that is a number."""
        return _at(t, self._control)

    def loss(self, t: Time) -> Time:
        """The expected loss m(t) under the control, at the times t ``[...]``, or at one that is a number."""
        return _at(t, self._loss)

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        if math.isinf(self.switch):
            why = "there is no minimum to stay at" if self.curvature <= 0 else "there is no noise"
            return f"keep the full learning rate {self.lr:.3g} for ever: {why}"
        if self.m0 == 0:
            return "take no step: the loss is at its minimum"
        if self.switch == 0:
            return f"start at the learning rate {self.lr * self.control(0.0):.3g} and let it fall as 1/t at once"
        steps = f"from t = {self.switch:.4g} ({self.switch / self.lr:.0f} steps) on"
        return f"keep the learning rate {self.lr:.3g} at first and let it fall as 1/t {steps}"

    def __repr__(self) -> str:
        return f"Annealing({self.verdict})"

    def plot(self, T: float) -> Any:
        """The control and the loss up to time T, a ``matplotlib.figure.Figure``.

        Raises:
            InvalidType, InvalidValue: T is no positive number.
        """
        check_positive(T=T)
        t = torch.linspace(0, T, 300, dtype=torch.float64, device="cpu")
        figure, (left, right) = new_axes(8.0, 3.2, 2)
        left.plot(t.tolist(), self.control(t).tolist(), color=COLORS[0], linewidth=1.8)
        left.set_title("control", fontsize=10, loc="left")
        left.set(xlabel="time: lr times steps", ylabel="factor of the learning rate", ylim=(0, 1.05))
        right.plot(t.tolist(), self.loss(t).tolist(), color=COLORS[1], linewidth=1.8)
        right.set_title("loss under it", fontsize=10, loc="left")
        right.set(xlabel="time: lr times steps", ylabel="expected loss")
        for axis in (left, right):
            if self.switch < T:
                axis.axvline(self.switch, color=INK, linewidth=1, linestyle=":", label=f"t* = {self.switch:.3g}")
                axis.legend(frameon=False, fontsize=9)
        return figure

    def _control(self, t: Tensor) -> Tensor:
        if math.isinf(self.switch):
            return torch.ones_like(t)
        late = (t - self.switch).clamp(min=0)
        if self.m0 == 0:
            return torch.zeros_like(t)
        return 1 / (max(1.0, self._floor / self.m0) + self.curvature * late)

    def _loss(self, t: Tensor) -> Tensor:
        early = t.clamp(max=self.switch)
        sustained = self._floor / 2  # where the full rate would end
        full = sustained + (self.m0 - sustained) * torch.exp(-2 * self.curvature * early)
        return full if math.isinf(self.switch) else torch.where(t > self.switch, self._floor * self._control(t), full)

    @property
    def _floor(self) -> float:
        """The loss eta Sigma / 2 below which the rate is turned down."""
        return self.lr * self.noise / 2


def optimal_annealing(curvature: float, noise: float, m0: float, lr: float) -> Annealing:
    """The schedule u*(t) of the learning rate u eta with the least expected loss on f = a/2 (x - b)^2, at every time.

    With u = 1 until t* = ln(4 m0 / (eta Sigma) - 1) / (2 a), then u = 1 / (1 + a (t - t*)). Where 2 m0 <= eta Sigma:
    t* = 0 and u = 1 / (eta Sigma / (2 m0) + a t). Where a <= 0, or Sigma is 0: u = 1 for ever (Li, Tai & E 2017,
    sec. 4.1, here solved in closed form). It is what ``annealing_control`` gives along m(t), and optimal among all
    schedules with values in [0, 1] for the modified equation; SGD itself is within O(eta) of that.

    Args:
        curvature: a, any sign.
        noise: variance Sigma >= 0 of the gradient at the batch size used.
        m0: expected loss E f(x_0): of the sign of a, as f is.
        lr: largest learning rate eta > 0.

    Returns:
        The switch time, the control and the loss as functions of time t = eta times steps.

    Raises:
        InvalidType: not numbers.
        InvalidValue: not finite, a negative noise, lr <= 0, or m0 of the wrong sign.
    """
    check_positive(lr=lr)
    check_non_negative(noise=noise)
    as_tensors(curvature=curvature, m0=m0)
    if isinstance(curvature, Tensor) or isinstance(m0, Tensor):
        raise InvalidType("curvature or m0 is a tensor; expected numbers, float(...)")
    if m0 * curvature < 0 or (curvature == 0 and m0 != 0):
        raise InvalidValue(f"m0 is {m0!r} and curvature is {curvature!r}; E f = a/2 E (x - b)^2 has the sign of a")
    return Annealing(float(curvature), float(noise), float(m0), float(lr), _switch(curvature, lr * noise, m0))


def _switch(a: float, level: float, m0: float) -> float:
    if a <= 0 or level == 0:
        return math.inf
    return 0.0 if 2 * m0 <= level else math.log(4 * m0 / level - 1) / (2 * a)


def _at(t: Time, law: Callable[[Tensor], Tensor]) -> Time:
    (times,) = as_tensors(t=t)
    if bool((times < 0).any()):
        raise InvalidValue("t holds negative times; expected times from 0 on")
    found = law(times)
    return found if isinstance(t, Tensor) else float(found)


def _checked(curvature: float | Tensor, noise: float | Tensor, m: float | Tensor, lr: float | Tensor) -> list[Tensor]:
    found = as_broadcast(curvature=curvature, noise=noise, m=m, lr=lr)
    if bool((found[1] < 0).any()):
        raise InvalidValue("noise is negative; expected variances of gradients, 0 or more")
    if bool((found[3] <= 0).any()):
        raise InvalidValue("lr is not positive; expected learning rates above 0")
    return found

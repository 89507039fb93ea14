"""Stochastic gradient descent with a controlled learning rate (Li, Tai & E 2017, arXiv:1511.06251, sec. 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from mfoc.checks import check_choice, check_positive
from mfoc.errors import InvalidValue
from mfoc.optim.controlled import Controlled
from mfoc.optim.running import TINY, Running, Values, curvature, forget, noisiness, observe


class CSGD(Controlled):
    """SGD whose learning rate is lr times a control u in (0, 1] of each coordinate.

    Where f = a/2 (x - b)^2 is descended at the rate lr u through noise of variance Sigma, m = E f obeys
    dm/dt = -2 a u m + a lr Sigma u^2 / 2, and is lowered fastest by u* = min(1, 2m / (lr Sigma)), or 1 where a <= 0
    (Li, Tai & E 2017, sec. 4.1). Curvature and noise come from running averages, and u is an average of u* with the
    same decay.

    ``signal`` says what m is taken from. "second", the authors' choice, is m = E[g^2] / (2a): then
    lr u* = min(lr, (1 + E[g]^2 / Sigma) / a), a rate capped by about the inverse curvature that does not anneal. "mean"
    is m = E[g]^2 / (2a), the excess loss alone: u* falls as the minimum is neared and the rate anneals.

    Where lr is below the inverse curvature of nearly every coordinate, as it is on small networks at any lr that
    trains, u stays at 1 and this is SGD at lr: see ``mean_control``. It does not take away the choice of lr. CMSGD is
    far less sensitive.

    Args:
        params: tensors, or groups of them with settings of their own.
        lr: the largest learning rate, eta.
        u0: the control before anything is seen, in (0, 1].
        signal: "second" or "mean".
        weight_decay: adds weight_decay * x to the gradient.
        nonfinite: what happens at a gradient that is not finite: "raise" an error or "skip" the step.
        foreach: update all tensors of a group by torch's calls for lists; None does on a GPU.
        fused: update by one compiled kernel (``torch.compile``: needs a C++ compiler, and some 20 s at the first step).

    Raises:
        InvalidType, InvalidValue: a setting is none of those.
    """

    _control = "rate_control"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        u0: float = 1.0,
        signal: str = "second",
        *,
        weight_decay: float = 0.0,
        nonfinite: str = "raise",
        foreach: bool | None = None,
        fused: bool = False,
    ) -> None:
        defaults = {"lr": lr, "u0": u0, "signal": signal, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nonfinite": nonfinite, "foreach": foreach, "fused": fused})

    def mean_control(self) -> float:
        """The mean of u over all coordinates: 1 means SGD at lr."""
        return self._mean()

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_positive(u0=group["u0"])
        if group["u0"] > 1:
            raise InvalidValue(f"u0 is {group['u0']!r}; expected a number in (0, 1], the share of lr to begin with")
        check_choice("second", "mean", signal=group["signal"])

    def _begin(self, group: dict[str, Any]) -> float:
        return float(group["u0"])

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (group["signal"],)

    @staticmethod
    def _move(x: Values, g: Values, seen: Running, rest: Sequence[Values], lr: float | Tensor, signal: str) -> None:
        (control,) = rest
        observe(seen, x, g)
        noisy = noisiness(seen)
        best = curvature(seen).mul_(lr)  # times Sigma / 2ma it is lr Sigma / (2m)
        if signal == "second":
            best.mul_(noisy)
        else:
            best.mul_(seen.gradient_variance).div_((seen.gradient_mean * seen.gradient_mean).clamp_(TINY))
        # u* = min(1, 2m / (lr Sigma)), as what is 1 too where the curvature is not positive.
        control.lerp_(best.clamp_(1.0).reciprocal_(), seen.forgetting)
        forget(seen, noisy)
        x.addcmul_(control * lr, g, value=-1.0)

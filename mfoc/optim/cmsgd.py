"""Stochastic gradient descent with a controlled momentum (Li, Tai & E 2017, arXiv:1511.06251, sec. 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from mfoc.checks import check_non_negative
from mfoc.errors import InvalidValue
from mfoc.optim.controlled import Controlled
from mfoc.optim.running import TINY, Running, Values, curvature, forget, noisiness, observe


class CMSGD(Controlled):
    """SGD with momentum, v <- mu v - lr g, x <- x + v, whose mu is controlled in each coordinate.

    On f = a/2 (x - b)^2 the mean is damped fastest by mu = 1 - 2 sqrt(lr a), and noise of variance Sigma asks for no
    more than 1 - lr Sigma / (4m), m = E f; so that mu* is the lesser of the two, not below 0, or 1 where a <= 0 (Li,
    Tai & E 2017, sec. 4.2). With the authors' m = E[g^2] / (2a) the second, 1 - lr a Sigma / (2 E[g^2]), is never the
    lesser, so that only the curvature counts: it comes from a running regression of g on x. mu is an average of mu*
    with the decay of that regression.

    What it buys is that the choice of ``momentum`` hardly matters, and that of ``lr`` little. A step costs about twice
    that of SGD where batches are small, and less with ``fused`` (``tests/benchmarks/bench_optimiser_step.py``).

    Args:
        params: tensors, or groups of them with settings of their own.
        lr: the learning rate, eta.
        momentum: mu before anything is seen, in [0, 1).
        weight_decay: adds weight_decay * x to the gradient.
        nonfinite: what happens at a gradient that is not finite: "raise" an error or "skip" the step.
        foreach: update all tensors of a group by torch's calls for lists; None does on a GPU.
        fused: update by one compiled kernel (``torch.compile``: needs a C++ compiler, and some 20 s at the first step).

    Raises:
        InvalidType, InvalidValue: a setting is none of those.
    """

    _control = "friction"  # 1 - mu, which is small
    _moves = ("velocity",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        *,
        weight_decay: float = 0.0,
        nonfinite: str = "raise",
        foreach: bool | None = None,
        fused: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nonfinite": nonfinite, "foreach": foreach, "fused": fused})

    def mean_momentum(self) -> float:
        """The mean of mu over all coordinates."""
        return 1.0 - self._mean()

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_non_negative(momentum=group["momentum"])
        if group["momentum"] >= 1:
            raise InvalidValue(f"momentum is {group['momentum']!r}; expected a number in [0, 1)")
        group["began"] = group["momentum"]

    def _begin(self, group: dict[str, Any]) -> float:
        return 1.0 - float(group["momentum"])

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        if group["momentum"] != group["began"]:
            raise InvalidValue(
                f"momentum of a group went from {group['began']} to {group['momentum']}, and CMSGD itself controls it; "
                "leave it where it begins: OneCycleLR or CyclicLR(..., cycle_momentum=False)"
            )
        return ()

    @staticmethod
    def _move(x: Values, g: Values, seen: Running, rest: Sequence[Values], lr: float | Tensor) -> None:
        friction, velocity = rest
        observe(seen, x, g)
        best = curvature(seen).mul_(lr).mul_(4.0).clamp_(TINY, 1.0).sqrt_()  # 1 - mu*; the root of a plain 0 is slow
        friction.addcmul_(best.sub_(friction), seen.forgetting)
        forget(seen, noisiness(seen))
        velocity.addcmul_(velocity, friction, value=-1.0).sub_(g * lr)
        x.add_(velocity)

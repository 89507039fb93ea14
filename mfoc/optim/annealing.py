"""The learning rate that anneals a quadratic fastest, as a scheduler of torch's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from mfoc.analysis.noise.theory.annealing import optimal_annealing
from mfoc.checks import check_instance, check_integer


class OptimalAnnealing(LRScheduler):
    """Full rate while descent is fast, then down as 1/t: the optimal control of SGD's rate on a quadratic.

    On f(x) = a x^2 / 2 with noise of variance Sigma in the gradient, m = E f follows
    dm/dt = -2 a u m + a eta Sigma u^2 / 2 in the time t = eta k. Among all factors 0 <= u(t) <= 1 of the rate the one
    with the smallest m, at every horizon, is 1 until the switch and 1 / (1 + a (t - switch)) from then on; where the
    noise rules from the beginning it is 1 / (eta Sigma / (2 m0) + a t) (Li, Tai & E 2017, arXiv:1511.06251, sec. 4.1).
    No horizon has to be known. ``mfoc.analysis.noise.optimal_annealing`` is the law, with the loss that it leads to.

    Call ``step()`` after each step of the optimiser (not once an epoch): k counts steps. Every group of parameters is
    annealed from its own rate, the eta of its law. The noise is that of the batch in use, and what holds along one
    direction is used for all: give the curvature that dominates the loss, and the part of the noise along it.

    Args:
        optimizer: what it schedules, plain SGD for the law to hold.
        curvature: a. The factor is 1 for ever where it is not positive.
        noise: Sigma, the variance of the gradient of one batch. The factor is 1 for ever where it is zero.
        m0: E f at the start, the loss above that of the minimum; of the sign of a.
        last_epoch: the number of the last step when a run is resumed, as for any scheduler of torch's.

    Raises:
        InvalidType: no optimiser, or no numbers.
        InvalidValue: numbers that are not finite, a negative noise, m0 of another sign than the curvature.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, curvature: float, noise: float, m0: float, last_epoch: int = -1
    ) -> None:
        check_instance(torch.optim.Optimizer, "a torch.optim.Optimizer", optimizer=optimizer)
        check_integer(-1, last_epoch=last_epoch)
        self._law = {"curvature": curvature, "noise": noise, "m0": m0}  # plain numbers: state_dict() holds them
        optimal_annealing(**self._law, lr=1.0)  # refuses what is wrong before the optimiser is touched
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each group at the present step."""
        return [rate * self._factor(float(rate)) for rate in self.base_lrs]

    def _factor(self, rate: float) -> float:
        if rate == 0:  # a group that is held still
            return 1.0
        return float(optimal_annealing(**self._law, lr=rate).control(rate * self.last_epoch))

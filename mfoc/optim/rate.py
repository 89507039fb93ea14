"""A learning rate that is chosen along the run: the best one for the next step, whatever the direction."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfoc.checks import (
    check_between,
    check_callable,
    check_instance,
    check_integer,
    check_non_negative,
    check_positive,
    kind_of,
)
from mfoc.derivatives import gradients, refuse_once_differentiable, second_order
from mfoc.distributed import expectation
from mfoc.errors import InvalidType, InvalidValue

logger = logging.getLogger(__name__)

_ENOUGH = 0.1  # of the fall of the loss to first order, which a step must reach (Armijo 1966)
_ROUNDING = 4.0  # ulps of the loss, by which two evaluations may differ at the same place
_WHAT, _CURE = "LearningRateControl, of the loss,", "fresh may return a smooth loss in its place"
_HALVINGS = 30  # of the very first step, whose rate nothing is known about


class LearningRateControl:
    """Chooses the learning rate of Adam and its kin as they run, so that the one given hardly matters.

    Along the optimiser's direction d, the rate that lowers the expected loss most in one step is E[g.d] / E|d'Hd|, g
    and H the gradient and the Hessian on data that d was not made from. It is measured every few steps, on one fresh
    batch with one Hessian-vector product, and both expectations are averages over the past. The rate is halved where
    the loss of the fresh batch does not fall by a tenth of what it would to first order, as far as its dtype resolves
    that. From the second measurement on it changes by ``growth`` at most at a time.

        control = LearningRateControl(torch.optim.Adam(net.parameters()))
        for (x, y), (x2, y2) in pairs_of_batches:
            control.optimizer.zero_grad()
            loss(net(x), y).backward()
            control.step(lambda: loss(net(x2), y2))

    What is best for one step is not best for a run: it is set by the steep directions and their noise, while the flat
    ones would want more (short-horizon bias: Wu, Ren, Liao & Grosse 2018, arXiv:1803.02021). Adam divides by the size
    of the gradient and suffers little; SGD suffers much, with momentum too, and is warned of. The benchmark
    ``bench_optimisers`` has both. A rate or a schedule that is tuned may still be better.

    The optimiser's step must be proportional to its rate, and it may keep no copy of the parameters (schedule-free ones
    do). Use no scheduler beside it. Where processes hold shares of the data, all of them take the same rate, by the
    mean of their losses: that of the data where shares are equal, as with gradients in DistributedDataParallel.

    Args:
        optimizer: the optimiser. Rates of several groups keep their ratios.
        every: steps between measurements.
        decay: weight of the past in the averages, for each measurement.
        growth: largest factor by which a measurement changes the rate.

    Raises:
        InvalidType, InvalidValue: no optimiser, rates that are tensors or zero, settings out of range.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, every: int = 5, decay: float = 0.99, growth: float = 2.0
    ) -> None:
        check_instance(torch.optim.Optimizer, "a torch.optim.Optimizer", optimizer=optimizer)
        check_integer(1, every=every)
        check_between(0, 1, decay=decay)
        check_positive(growth=growth)
        if growth <= 1:
            raise InvalidValue(f"growth is {growth!r}; expected a factor above 1")
        self.optimizer = optimizer
        self._base: list[float] = [group["lr"] for group in optimizer.param_groups]
        for lr in self._base:
            check_positive(lr=lr)
        if isinstance(optimizer, torch.optim.SGD):
            logger.warning("the rate that is best for one step of SGD is far below the best for a run; use Adam")
        self._every, self._decay, self._growth = every, decay, growth
        self._steps = 0
        self._scale = 1.0  # the rates as a multiple of those given
        self._descent = self._curvature = 0.0  # averages of g.d and |d'Hd|, for a scale of 1

    @property
    def lr(self) -> float:
        """The present rate, of the first group."""
        return self._base[0] * self._scale

    def step(self, fresh: Callable[[], Tensor]) -> None:
        """A step of the optimiser, in place of its own: the gradients are in ``.grad``.

        Args:
            fresh: the loss on a batch that ``.grad`` was not made from, a scalar with a graph. When a measurement is
                due it is called a few times, for the same batch each time; else not at all. Batch-norm in training
                mode counts the batch at every call; the noise of dropout makes for some more halvings.

        Raises:
            InvalidType, InvalidValue: it returns no such loss, or one without second derivatives. InvalidValue too
                where the optimiser has other groups than it had, a rate of theirs was set by something else, or the
                first rate is too small to move the weights at all; nothing has moved then.
        """
        check_callable("a function that returns the loss on a fresh batch", fresh=fresh)
        self._alone()
        if self._steps % self._every:
            self.optimizer.step()
        else:
            self._controlled(fresh)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the optimiser has its own."""
        return {
            "steps": self._steps, "scale": self._scale, "base": list(self._base),
            "descent": self._descent, "curvature": self._curvature,
        }  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from ``state_dict()``; load that of the optimiser, too.

        Raises:
            InvalidValue: it is not of such a control, or of one with another number of groups.
        """
        check_instance(Mapping, "what state_dict() returned", state_dict=state_dict)
        if state_dict.keys() != self.state_dict().keys() or len(state_dict["base"]) != len(self._base):
            raise InvalidValue(f"state_dict holds {sorted(state_dict)}; expected that of a control of as many groups")
        check_integer(0, steps=state_dict["steps"])
        check_non_negative(curvature=state_dict["curvature"])
        for rate in (state_dict["scale"], *state_dict["base"]):
            check_positive(rate=rate)
        self._steps, self._base = state_dict["steps"], list(state_dict["base"])
        self._descent, self._curvature = state_dict["descent"], state_dict["curvature"]
        self._set(state_dict["scale"])

    def _controlled(self, fresh: Callable[[], Tensor]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return self.optimizer.step()
        before = [p.detach().clone() for p in parameters]
        self.optimizer.step()
        moves = [old - p.detach() for old, p in zip(before, parameters, strict=True)]
        if self._curvature == 0:
            self._check_moved(parameters, moves)
        factor = 1.0

        def go(share: float) -> None:
            with torch.no_grad():
                for p, old, move in zip(parameters, before, moves, strict=True):
                    p.copy_(old - share * move)

        try:
            go(0.0)
            with second_order(_WHAT, _CURE):
                loss, slack, descent, curvature = _measured(fresh, parameters, moves)
                if math.isfinite(loss) and math.isfinite(descent) and math.isfinite(curvature):
                    wanted, least = self._wanted(descent, curvature)
                    factor = wanted / self._scale

                    def falls(share: float) -> bool:
                        go(share)
                        with torch.no_grad():
                            return _agreed([_loss(fresh)])[0] <= loss + slack - _ENOUGH * share * descent

                    for _ in range(_HALVINGS):
                        if descent <= 0 or factor <= least or falls(factor):
                            break
                        factor = max(factor / 2, least)
        except BaseException:  # the optimiser has taken its step: so have the parameters
            go(1.0)
            raise
        go(factor)
        self._set(self._scale * factor)

    def _check_moved(self, parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> None:
        pushed = any(bool(p.grad.any()) for p in parameters if p.grad is not None)
        if pushed and not any(bool(move.any()) for move in moves):
            raise InvalidValue(
                f"a step at the rate {self.lr:g} is lost to the rounding of the weights, so there is no direction to "
                "measure along; begin with a larger lr"
            )

    def _wanted(self, descent: float, curvature: float) -> tuple[float, float]:
        """The scale that the averages ask for, and the least factor of the present one that is allowed."""
        first = self._curvature == 0
        for_one = (descent / self._scale, abs(curvature) / self._scale**2)
        self._descent = self._decay * self._descent + (1 - self._decay) * for_one[0]
        self._curvature = self._decay * self._curvature + (1 - self._decay) * for_one[1]
        if self._descent <= 0 or self._curvature == 0:  # noise, or no curvature: nothing to go by
            return self._scale, 1 / self._growth
        wanted = self._descent / self._curvature
        if first:
            return wanted, 0.0
        return min(max(wanted, self._scale / self._growth), self._scale * self._growth), 1 / self._growth

    def _alone(self) -> None:
        """Refuses groups that were added since, and rates that something else has set."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if len(rates) != len(self._base):
            raise InvalidValue(
                f"the optimiser has {len(rates)} groups of parameters, and had {len(self._base)}; make a new "
                "LearningRateControl after add_param_group"
            )
        own = [lr * self._scale for lr in self._base]
        if rates != own:
            raise InvalidValue(
                f"the rates of the optimiser are {rates}, and LearningRateControl had set {own}; use no scheduler "
                "beside it, and load the states of both to resume a run"
            )

    def _set(self, scale: float) -> None:
        self._scale = scale
        for group, lr in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = lr * scale


def _measured(fresh: Callable[[], Tensor], parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> list[float]:
    """The loss and what it is rounded by, its slope along the moves (which are subtracted) and second derivative."""
    with torch.enable_grad():
        loss = _loss(fresh)
        refuse_once_differentiable(loss, _WHAT, _CURE)
        if not loss.requires_grad:
            raise InvalidValue("fresh() returned a loss without a graph; expected one that depends on the parameters")
        slopes = gradients(loss, parameters, create_graph=True)
        descent = _dot(slopes, moves)
        curvature = _dot(gradients(descent, parameters), moves)
    coarsest = max(torch.finfo(t.dtype).eps for t in (loss, *parameters))
    return _agreed([loss, _ROUNDING * coarsest * loss.abs(), descent, curvature])


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _loss(fresh: Callable[[], Tensor]) -> Tensor:
    loss = fresh()
    if not isinstance(loss, Tensor):
        raise InvalidType(f"fresh() returned {kind_of(loss)}; expected the loss, a scalar tensor")
    if loss.numel() != 1:
        raise InvalidValue(f"fresh() returned a loss of shape {tuple(loss.shape)}; expected a scalar")
    return loss.reshape(())


def _agreed(numbers: Sequence[Tensor]) -> list[float]:
    """The means over all processes, so that they go the same way."""
    return [float(mean) for mean in expectation([number.detach() for number in numbers], 1)]

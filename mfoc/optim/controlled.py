"""What CSGD and CMSGD share: groups, what is refused, and the statistics of each coordinate."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from mfoc.checks import check_choice, check_flag, check_instance, check_non_negative, check_positive
from mfoc.compilation import validation_kept
from mfoc.errors import InvalidType, InvalidValue, MissingExtra
from mfoc.optim.many import Many
from mfoc.optim.running import AVERAGES, Running, begun

_PIECE = 1 << 16  # elements that are updated at a time on a CPU: with their averages, what a cache holds
_LOW = (torch.float16, torch.bfloat16)  # averages are kept in float32 for these


class Controlled(Optimizer):
    """An optimiser whose step is controlled coordinate by coordinate, by what it has seen of curvature and noise.

    Attributes:
        skipped: steps not taken because a gradient was not finite, with ``nonfinite="skip"``, since it was made or
            loaded.
    """

    _control: str  # what is controlled: the name of its average in the state
    _moves: tuple[str, ...] = ()  # more of the state, which begins at zero

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.skipped = 0
        if not isinstance(params, Tensor):  # which torch refuses by name
            check_instance(Iterable, "parameters to train, as net.parameters() gives", params=params)
        try:
            super().__init__(params, defaults)
        except (InvalidType, InvalidValue):
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:  # as torch says what it cannot train
            raise InvalidValue(f"params cannot be trained: {error}") from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.skipped = 0
        super().__setstate__(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of torch; settings of the group are checked."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except (InvalidType, InvalidValue):
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        check_positive(lr=group["lr"])
        check_non_negative(weight_decay=group["weight_decay"])
        for weight in group["params"]:
            if not weight.is_floating_point():
                raise InvalidType(f"params has a tensor of {weight.dtype}; expected floating-point tensors")
        check_choice("raise", "skip", nonfinite=group["nonfinite"])
        check_flag(fused=group["fused"], **{} if group["foreach"] is None else {"foreach": group["foreach"]})
        if group["fused"] and group["foreach"]:
            raise InvalidValue("foreach and fused are both True; expected one way to update, or neither")

    def _begin(self, group: dict[str, Any]) -> float:
        """The control before anything was seen."""
        raise NotImplementedError

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """What ``_move`` is told of the group, after the learning rate."""
        return ()

    @staticmethod
    def _move(x: Any, g: Any, seen: Running, rest: Sequence[Any], lr: float | Tensor, *settings: Any) -> None:
        """Observes and moves; ``rest`` is the average of the control and what ``_moves`` names."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step.

        Args:
            closure: evaluates the loss again and returns it.

        Raises:
            InvalidType: a gradient is sparse or complex.
            InvalidValue: a gradient is not finite, or its square would not be, and ``nonfinite="raise"``; a setting
                that is controlled was changed. Nothing has moved.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        live = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        settings = [self._settings(group) for group in self.param_groups]  # what is refused is so before a group moves
        finite = [_finite(weights, group["nonfinite"] == "raise") for group, weights in live]
        if all(finite):
            for (group, weights), own in zip(live, settings, strict=True):
                if weights:
                    self._follow(group, weights, own)
        else:
            self.skipped += 1
        return loss

    def _follow(self, group: dict[str, Any], weights: list[Tensor], settings: tuple[Any, ...]) -> None:
        rows = []
        for weight in weights:
            held = self._state_of(group, weight)
            g = _gradient(weight).to(held[0].dtype)
            rows.append([weight, g.add(weight, alpha=group["weight_decay"]) if group["weight_decay"] else g, *held])
        together = weights[0].is_cuda if group["foreach"] is None else group["foreach"]
        move, parts = self._move, _pieces(rows)
        if group["fused"]:
            move, parts = _compiled(move), map(_flat, rows)
        elif together:
            parts = iter([[Many(list(column)) for column in zip(*rows, strict=True)]])
        first = 2 + len(AVERAGES)
        for part in parts:
            # A number would be compiled in.
            lr = part[2].new_full((), group["lr"]) if group["fused"] else group["lr"]
            move(part[0], part[1], Running(*part[2:first]), part[first:], lr, *settings)

    def _state_of(self, group: dict[str, Any], weight: Tensor) -> list[Tensor]:
        state = self.state[weight]
        if not state:
            like = weight.detach().to(torch.float32) if weight.dtype in _LOW else weight.detach()
            state.update(begun(like))
            state[self._control] = torch.full_like(like, self._begin(group))
            state.update({name: torch.zeros_like(like) for name in self._moves})
        return [state[name] for name in (*AVERAGES, self._control, *self._moves)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of torch; averages of half-precision weights stay in float32.

        Raises:
            InvalidValue: it is the state of an optimiser of another class.
        """
        names = {*AVERAGES, self._control, *self._moves}
        alike = all(group.keys() >= self.defaults.keys() for group in state_dict["param_groups"])
        if not alike or any(values.keys() != names for values in state_dict["state"].values() if values):
            raise InvalidValue(f"state_dict is of another optimiser; expected what {type(self).__name__} has saved")
        super().load_state_dict(state_dict)
        saved = [state_dict["state"].get(k, {}) for group in state_dict["param_groups"] for k in group["params"]]
        held = [weight for group in self.param_groups for weight in group["params"]]
        for weight, values in zip(held, saved, strict=True):
            if weight.dtype in _LOW:
                self.state[weight].update({name: value.to(weight.device, copy=True) for name, value in values.items()})

    def _mean(self) -> float:
        """The mean of the control over all coordinates; those that have seen nothing have it where it begins."""
        total, count = 0.0, 0
        for group in self.param_groups:
            for weight in group["params"]:
                held = self.state.get(weight, {}).get(self._control)
                here = self._begin(group) * weight.numel() if held is None else float(held.double().sum())
                total, count = total + here, count + weight.numel()
        return total / count if count else math.nan


def _gradient(weight: Tensor) -> Tensor:
    """Of a weight that has one, dense."""
    gradient = weight.grad
    assert gradient is not None
    if gradient.layout is not torch.strided:
        raise InvalidType(
            f"a gradient is sparse ({gradient.layout}), and every coordinate has averages that change at every step; "
            "use sparse=False in the layer, or torch.optim.SparseAdam for its weight"
        )
    return gradient


def _finite(weights: list[Tensor], refuse: bool) -> bool:
    """Whether all gradients are, of tensors of any device and dtype, and can be squared in their averages."""
    bad = []
    for kind in {(weight.device, weight.dtype) for weight in weights}:
        same = [weight for weight in weights if (weight.device, weight.dtype) == kind]
        averaged = torch.float32 if kind[1] in _LOW else kind[1]
        most = 0.1 * math.sqrt(torch.finfo(averaged).max)  # so that the squares of differences are finite too
        # Where a norm is below that all elements are; where it is not it may be only that there are many.
        norms = torch.stack(torch._foreach_norm([_gradient(weight) for weight in same])).tolist()
        doubtful = [weight for weight, norm in zip(same, norms, strict=True) if not norm <= most]
        bad += [weight for weight in doubtful if not (_gradient(weight).abs() <= most).all()]
    if bad and refuse:
        shapes = ", ".join(str(tuple(weight.shape)) for weight in bad[:3])
        raise InvalidValue(
            f"the gradient of {len(bad)} of {len(weights)} tensors is not finite (shape {shapes}), or too large to be "
            'squared; nothing has moved. Lower lr, clip the gradients, or pass nonfinite="skip" to leave such steps out'
        )
    return not bad


@functools.cache
def _compiled(move: Callable[..., None]) -> Callable[..., None]:
    """One kernel for tensors of any size."""
    from torch._dynamo.exc import TorchDynamoException

    with validation_kept():
        kernel = torch.compile(move, dynamic=True)

    def run(*arguments: Any) -> None:
        try:
            with validation_kept():
                kernel(*arguments)
        except TorchDynamoException as error:
            reason = str(error).splitlines()[0]
            raise MissingExtra(
                f"fused=True needs torch.compile, which failed: {reason}. Install a C++ compiler, or leave fused out"
            ) from error

    return run


def _flat(row: list[Tensor]) -> list[Tensor]:
    """Views of one dimension, where the memory of all is in one order."""
    return [t.view(-1) for t in row] if all(t.is_contiguous() for t in row) else row


def _pieces(rows: list[list[Tensor]]) -> Iterator[Sequence[Any]]:
    """Tensor by tensor, and a piece at a time where that can be."""
    for row in map(_flat, rows):
        if row[0].dim() == 1 and row[0].numel() > _PIECE:
            yield from zip(*(torch.split(tensor, _PIECE) for tensor in row), strict=True)
        else:
            yield row

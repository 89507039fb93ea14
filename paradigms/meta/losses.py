"""A loss of one task over all tasks of a batch."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_callable, kind_of
from mfoc.vectorisation import Mapper

Loss = Callable[..., Tensor]

# Torch losses that are a mean over elements, or over the shots that are counted: evaluated in one call for all tasks.
_ELEMENTWISE: tuple[Any, ...] = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.soft_margin_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss,
    nn.BCELoss, nn.SoftMarginLoss,
)  # fmt: skip
_CLASSES: tuple[Any, ...] = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)


class TaskLoss:
    """A loss of one task, ``loss(output [shots, ...], target [shots, ...]) -> scalar``, over all tasks: ``[tasks]``.

    Args:
        loss: a function of the outputs and targets of one task; torch losses are evaluated in one call for all tasks,
            others through ``torch.func.vmap``.

    Attributes:
        classes: targets are indices of classes (or their probabilities); known of torch's losses alone.
        ignored: the index that is not counted.
    """

    def __init__(self, loss: Loss | nn.Module) -> None:
        if isinstance(loss, type):
            raise InvalidType(f"loss is the class {loss.__name__}; make an instance, {loss.__name__}()")
        check_callable("a function loss(output, target) -> scalar", loss=loss)
        reduction = getattr(loss, "reduction", "mean")
        self._loss, self._sum = loss, reduction == "sum"
        kind = type(loss) if isinstance(loss, nn.Module) else loss
        self.classes, self.elementwise = kind in _CLASSES, kind in _ELEMENTWISE
        scalar = reduction in ("mean", "sum") if self.classes or self.elementwise else reduction != "none"
        if not scalar:
            raise InvalidValue(f"loss has reduction={reduction!r}; expected one number a task: 'mean' or 'sum'")
        given = getattr(loss, "keywords", {})  # of a partial
        self.ignored = int(getattr(loss, "ignore_index", given.get("ignore_index", -100)))
        self._mapper = Mapper("loss", "task")
        self._answered: tuple[weakref.ref[Tensor] | None, int, bool] = (None, 0, False)
        self._each, self._all = self._reduced("none"), self._reduced("sum")

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        """Outputs and targets ``[tasks, shots, ...]`` to losses ``[tasks]``; one's own loss takes trees of outputs."""
        if self._each is None:
            value: Tensor = self._mapper(self._loss, output, target)
            if value.dim() != 1:
                raise InvalidValue(
                    f"loss returned shape {tuple(value.shape[1:])} for one task; expected a scalar (its mean, say)"
                )
            return value
        if self.elementwise and target.shape != output.shape:
            raise InvalidValue(_unlike(output, target))
        each = self._each(output.flatten(0, 1), target.flatten(0, 1)).reshape(len(output), -1)
        if self._sum:
            return each.sum(1)
        return each.sum(1) / self.counted(target).flatten(1).sum(1) if self._masked(target) else each.mean(1)

    def total(self, output: Any, target: Tensor) -> Tensor:
        """The sum over tasks: the same number as ``self(output, target).sum()``, in fewer operations."""
        if self._all is None:
            return self(output, target).sum()
        if self.classes:  # of class probabilities the mean is over shots, not over the elements of the target
            plain = not target.is_floating_point() and target.shape == output.shape[: target.dim()]
            plain = plain and (self._sum or not self._masked(target))
        else:
            plain = target.shape == output.shape
        if not plain:
            return self(output, target).sum()
        value: Tensor = self._all(output.flatten(0, 1), target.flatten(0, 1))
        return value if self._sum else value * (len(target) / target.numel())

    def counted(self, target: Tensor) -> Tensor:
        """Which targets are counted: class indices but the ignored one."""
        return target != self.ignored

    def _masked(self, target: Tensor) -> bool:
        """Whether the mean has to leave some targets out; on a GPU they are masked at once, as asking would wait.

        The answer for one tensor is kept: inner steps ask about the same support again and again.
        """
        if not self.classes or target.is_floating_point():
            return False
        if target.device.type != "cpu":
            return True
        version = -1 if target.is_inference() else target._version
        known, at, answer = self._answered
        if known is None or known() is not target or at != version:
            try:
                answer = not bool(self.counted(target).all())
            except RuntimeError:  # within vmap no question can be asked
                return True
            self._answered = (weakref.ref(target), version, answer)
        return answer

    def check(self, output: Any, target: Tensor, name: str) -> None:
        """Refuses targets that cannot be right: ``output`` is of one task at least, ``target`` of all tasks.

        Raises:
            InvalidType: an output that is no tensor, where the loss is one of torch's.
            InvalidValue: shots were lost, targets of another shape, labels that no output stands for.
        """
        if not isinstance(output, Tensor) and (self._each is not None or self.classes):
            raise InvalidType(
                f"net returns {kind_of(output)}; a loss of torch takes one tensor: give a function of (output, target)"
            )
        for leaf in tree.leaves(output):
            if leaf.dim() < 2 or leaf.shape[1] != target.shape[1]:
                raise InvalidValue(
                    f"net returns shape {tuple(leaf.shape[1:])} for the {target.shape[1]} shots of a {name}; "
                    "expected [shots, ...]"
                )
        if (self.elementwise or self.classes) and target.is_floating_point() and not bool(target.isfinite().all()):
            raise InvalidValue(f"{name} y holds NaN or infinite values")
        if self.elementwise and target.shape[1:] != output.shape[1:]:
            raise InvalidValue(f"{name}: {_unlike(output, target)}")
        if self.classes:
            self._check_classes(output, target, name)

    def _check_classes(self, output: Tensor, target: Tensor, name: str) -> None:
        if target.is_floating_point() and target.shape[1:] == output.shape[1:]:
            return  # probabilities
        of_indices = (*output.shape[1:2], *output.shape[3:])
        if output.dim() < 3 or target.is_floating_point() or target.shape[1:] != of_indices:
            raise InvalidValue(
                f"{name} y has shape {tuple(target.shape[1:])} and dtype {target.dtype} for one task and the outputs "
                f"have {tuple(output.shape[1:])}; expected integer labels {of_indices}, or probabilities of that shape"
            )
        if target.dtype not in (torch.int64, torch.uint8):
            raise InvalidValue(f"{name} y has dtype {target.dtype}; expected labels of dtype torch.int64: y.long()")
        bad = target[self.counted(target) & ((target < 0) | (target >= output.shape[2]))]
        if bad.numel():
            raise InvalidValue(
                f"{name} y holds the label {int(bad[0])}; the network has {output.shape[2]} outputs, so that labels "
                f"are 0 to {output.shape[2] - 1}, or {self.ignored}, which is not counted"
            )

    def _reduced(self, reduction: str) -> Loss | None:
        """The loss with another reduction, where its own is plain; None otherwise."""
        loss: Any = self._loss
        if not (self.classes or self.elementwise):
            return None
        if not isinstance(loss, nn.Module):
            return lambda output, target: loss(output, target, reduction=reduction)
        if any(True for _ in loss.buffers()):  # weights of classes
            return None
        single = copy.deepcopy(loss)
        single.reduction = reduction  # type: ignore[assignment]
        return single


def _unlike(output: Tensor, target: Tensor) -> str:
    return (
        f"outputs {tuple(output.shape[1:])} and targets {tuple(target.shape[1:])} of a task would be broadcast; give "
        "the targets the shape of the outputs"
    )

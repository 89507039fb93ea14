"""When a network is right about a particle: by its logits, or by the one number that it returns."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue
from mfoc.networks import per_sample
from paradigms.adversarial.games import Loss


class Verdict:
    """What is raised, and when a network is right.

    Attributes:
        cost: the loss, whose labels are made to fit a network of one number.
    """

    def __init__(self, loss: Loss | nn.Module) -> None:
        self.cost: Any = loss
        self._loss: Any = loss
        while hasattr(self._loss, "func"):  # of partials
            self._loss = self._loss.func
        kind = type(self._loss) if isinstance(self._loss, nn.Module) else self._loss
        self._own = not str(getattr(kind, "__module__", "")).startswith("torch.")
        self._cut = (0, 0.0) if self._own else _CUTS.get(kind)
        if callable(loss) and not isinstance(loss, type) and not self._own:
            self.cost = self._fitted(per_sample(loss))

    def _fitted(self, each: Loss) -> Loss:
        def cost(output: Any, z: Any) -> Tensor:
            if single(output) and isinstance(z, Tensor):
                self._threshold(output)
                if z.numel() == len(output):
                    z = z.reshape(output.shape).to(output.dtype)
            return each(output, z)

        return cost

    def _threshold(self, output: Tensor) -> tuple[int, float]:
        """The lesser label, and where the number that stands for it ends."""
        if self._cut is None:
            name = getattr(self._loss, "__name__", type(self._loss).__name__)
            raise InvalidValue(
                f"the network returns one number for each particle, {tuple(output.shape)}, of which {name} makes no "
                "two classes; pass loss=F.binary_cross_entropy_with_logits, or let the network return a logit for each "
                "class"
            )
        return self._cut

    def right(self, output: Tensor, labels: Any) -> Tensor:
        """Which particles are classified right ``[N]``; NaN stands for no class."""
        if single(output):
            least, threshold = self._threshold(output)
            if not isinstance(labels, Tensor) or labels.numel() != len(output) or labels.dim() > 2:
                raise InvalidType(_misfit(output, labels, f"one number [N] needs a label {least} or 1 for each"))
            labels, output = labels.flatten(), output.flatten()
            bad = (labels != least) & (labels != 1)
            if bad.any():
                raise InvalidValue(f"the labels hold {labels[bad][0].item()}; expected {least} and 1 for one logit")
            right: Tensor = ((output > threshold) == (labels == 1)) & ~output.isnan()
            return right
        integer = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 1
        if output.dim() != 2 or not integer:
            raise InvalidType(_misfit(output, labels, "accuracy needs logits [N, classes] and integer labels [N]"))
        right = (output.argmax(1) == labels) & ~output.isnan().any(1)
        return right


_CUTS: dict[Any, tuple[int, float]] = {  # losses of one number: the lesser label, and where the number is cut
    F.binary_cross_entropy_with_logits: (0, 0.0),
    nn.BCEWithLogitsLoss: (0, 0.0),
    F.binary_cross_entropy: (0, 0.5),
    nn.BCELoss: (0, 0.5),
    F.soft_margin_loss: (-1, 0.0),
    nn.SoftMarginLoss: (-1, 0.0),
}


def single(output: Any) -> bool:
    """Whether a network returns one number for each particle."""
    return isinstance(output, Tensor) and (output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1))


def _misfit(output: Tensor, labels: Any, expected: str) -> str:
    given = f"{tuple(labels.shape)} {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
    return f"{expected}; the network returns {tuple(output.shape)} and the labels are {given}"

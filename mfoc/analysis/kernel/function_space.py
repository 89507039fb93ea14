"""Gradient descent on the outputs: the loss as a function of them, and their linearised dynamics."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.analysis.kernel.doors import check_fits
from mfoc.analysis.kernel.taps import normal_like
from mfoc.checks import kind_of
from mfoc.derivatives import refuse_once_differentiable, second_order
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.losses import Loss, per_sample


@dataclass(frozen=True, eq=False)
class Outputs:
    """The loss as a function of the outputs on all samples.

    Attributes:
        value: of outputs ``[N, ...]``: the number that is trained on.
        start: the outputs of the network, flat ``[N C]``, in float32 at least.
        shape: that of the outputs.
        scale: s where the loss is (s / 2) ||f - target||^2 and a constant; None where it is not squared.
    """

    value: Callable[[Tensor], Tensor]
    start: Tensor
    shape: torch.Size
    scale: float | None = field(default=None)

    @classmethod
    def of(cls, loss: Loss | nn.Module, out: Tensor, y: Any) -> Outputs:
        """Checks that the loss fits the outputs, and looks whether it is a squared one.

        Raises:
            InvalidType: it is no loss.
            InvalidValue: it does not fit them.
        """
        value = _checked(loss, out, y)
        start = out.to(torch.promote_types(out.dtype, torch.float32)).flatten()
        made = cls(value, start, out.shape)
        return cls(value, start, out.shape, made._scale())

    def __call__(self, f: Tensor) -> Tensor:
        """The loss of flat outputs ``[N C]``."""
        return self.value(f.reshape(self.shape))

    def slope(self, f: Tensor) -> Tensor:
        """dL/df at flat outputs."""
        with torch.enable_grad():
            f = tree.free(f)
            return torch.autograd.grad(self(f), f)[0].detach()

    def _scale(self) -> float | None:
        """The s of a squared loss: its slope changes by s d over any d, large or small."""
        f, slope = self.start, self.slope(self.start)
        reach = 1 + float(f.abs().max())
        found = []
        for size in (0.5, -3.0):
            d = size * reach * (0.5 + normal_like(f).abs())
            change = self.slope(f + d) - slope
            s = float((change @ d) / (d @ d))
            if not s > 0 or bool((change - s * d).norm() > 1e3 * torch.finfo(f.dtype).eps * (s * d).norm()):
                return None
            found.append(s)
        same = abs(found[0] - found[1]) <= 1e3 * torch.finfo(f.dtype).eps * found[0]
        return found[1] if same else None

    def hessian(self) -> Tensor:
        """d^2 L / df^2 at the start, ``[N C, N C]``."""
        needs = "a Hessian of the loss in the outputs", "use a loss that has one, such as F.mse_loss"
        with torch.enable_grad(), second_order(*needs):
            f = tree.free(self.start)
            value = self(f)
            refuse_once_differentiable(value, *needs)
            slope = torch.autograd.grad(value, f, create_graph=True)[0]
            if not slope.requires_grad:  # a loss that is linear in the outputs
                return torch.zeros(len(f), len(f), dtype=f.dtype, device=f.device)
            eye = torch.eye(len(f), dtype=f.dtype, device=f.device)
            rows = [torch.autograd.grad(slope, f, row, retain_graph=True)[0] for row in eye]
        return torch.stack(rows)


def _checked(loss: Loss | nn.Module, out: Tensor, y: Any) -> Callable[[Tensor], Tensor]:
    each = per_sample(loss)  # says what is no loss; and torch's own with shapes that would be broadcast
    given = f"the output {list(out.shape)} and y {list(y.shape) if isinstance(y, Tensor) else type(y).__name__}"

    def value(f: Tensor) -> Tensor:
        found = loss(f, y)
        if not isinstance(found, Tensor):
            raise InvalidType(f"loss returned {kind_of(found)}; expected a tensor")
        return found if found.dim() == 0 else found.mean()

    if isinstance(y, Tensor) and y.dim() and len(y) != len(out):
        raise InvalidValue(f"y has {len(y)} entries for {len(out)} samples")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*target size.*")  # torch's word for a broadcast
        try:
            with torch.enable_grad():
                each(out, y)
                found = value(tree.free(out))
        except (InvalidType, InvalidValue):
            raise
        except Exception as error:  # whatever a loss raises
            raise InvalidValue(f"loss cannot be evaluated on {given}: {error}") from error
    if not found.requires_grad:
        raise InvalidValue(f"loss does not depend on the outputs: {given}")
    if not bool(found.isfinite()):
        raise InvalidValue(f"loss is {found.item()} on {given}; expected a finite number")
    return value


@dataclass(frozen=True, eq=False)
class Curve:
    """The linearised dynamics f <- f - lr Theta dL/df.

    Attributes:
        kernel: Theta ``[N C, N C]``.
        space: the loss.
        values: eigenvalues of Theta, ascending.
        vectors: its eigenvectors, in columns.
        range: the least and the largest eigenvalue of Theta^(1/2) H Theta^(1/2).
    """

    kernel: Tensor
    space: Outputs
    values: Tensor
    vectors: Tensor
    range: tuple[float, float]

    @classmethod
    def of(cls, kernel: Tensor, space: Outputs, memory: int) -> Curve:
        """Takes the eigenvalues.

        Raises:
            InvalidValue: they do not fit into memory.
        """
        cures = "take fewer samples: the eigenvalues of the whole kernel are asked for"
        check_fits((4, *kernel.shape), kernel.dtype, memory, cures=cures)
        values, vectors = torch.linalg.eigh((kernel + kernel.mT) / 2)
        values = torch.where(values > len(values) * torch.finfo(kernel.dtype).eps * values[-1], values, 0.0)  # rounding
        if space.scale is not None:
            low, high = float(values[0]) * space.scale, float(values[-1]) * space.scale
        else:
            root = vectors * values.sqrt()
            spectrum = torch.linalg.eigvalsh(root.mT @ space.hessian() @ root)
            low, high = float(spectrum[0]), float(spectrum[-1])
            low = 0.0 if abs(low) <= len(spectrum) * torch.finfo(kernel.dtype).eps * high else low  # rounding
        return cls(kernel, space, values, vectors, (low, high))

    def losses(self, lr: float, steps: int) -> Tensor:
        """The loss before each step and after the last ``[steps + 1]``: a closed form where it is squared."""
        f = self.space.start
        if self.space.scale is None:
            found = [self.space(f)]
            for _ in range(steps):
                f = f - lr * (self.kernel @ self.space.slope(f))
                found.append(self.space(f))
                if not bool(found[-1].isfinite()):
                    break
            return torch.stack(found).detach().double().cpu()
        # L = (s / 2) |e|^2 + c with e = f - target; each component of e is multiplied by 1 - lr s lambda in a step.
        scale = self.space.scale
        error = self.space.slope(f).double() / scale
        parts = (self.vectors.double().mT @ error).square()
        least = self.space(f).detach().double() - scale / 2 * error.square().sum()
        factors = (1 - lr * scale * self.values.double()).square()
        powers = factors ** torch.arange(steps + 1, dtype=torch.float64, device=f.device)[:, None]
        found_losses = scale / 2 * powers @ parts
        floor = 1e2 * torch.finfo(f.dtype).eps * self.space(f).detach().double().abs()
        return (found_losses + torch.where(least.abs() > floor, least, 0.0)).cpu()

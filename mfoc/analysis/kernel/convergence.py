"""How gradient descent converges: what the kernel says of it, beside what is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.analysis.kernel.doors import check_samples, free_memory, private_copy, usable
from mfoc.analysis.kernel.empirical import empirical_ntk
from mfoc.analysis.kernel.function_space import Curve, Outputs
from mfoc.analysis.kernel.taps import plainly
from mfoc.analysis.kernel.theorem import Theorem, wide_two_layer
from mfoc.checks import check_between, check_integer, check_positive
from mfoc.figures import COLORS, new_axes
from mfoc.networks.inspection import trainable
from mfoc.networks.losses import Loss
from mfoc.printing import by_identity

_CLOSE, _FAR = 0.05, 0.3  # gaps up to which training is said to be linear, and to be near it
_NOTHING = 0.1  # the share of the first loss below which losses are not told apart


@by_identity
@dataclass(frozen=True, eq=False)
class NTKConvergence:
    """Gradient descent on a network's mean loss, as its kernel predicts it and as it was.

    With the kernel Theta held, the outputs f on the samples follow f <- f - lr Theta dL/df, L the loss as torch reduces
    it. Near f the errors are multiplied by 1 - lr H^(1/2) Theta H^(1/2) in each step, H the loss's Hessian in f: a
    constant for a squared loss (2 / (N C) for ``mse_loss``), and that at the present outputs for another.

    Attributes:
        kernel_eigenvalues: of Theta, ascending ``[N C]``.
        lambda_min: the smallest eigenvalue of Theta^(1/2) H Theta^(1/2): the rate of the slowest direction, per unit
            of lr.
        lambda_max: the largest.
        stable_lr: 2 / lambda_max, the largest stable step.
        lr: the step taken.
        contraction: the largest |1 - lr lambda|, by which the errors shrink in a step at least (1 - lr lambda_min up to
            half of the largest stable step).
        squared: whether the loss is a squared one, so that the prediction is a closed form.
        predicted: the loss before each step and after the last one ``[steps + 1]``, by the linearised dynamics.
        measured: the same of the network, trained on a copy by plain gradient descent.
        gap: the largest |predicted - measured| / max(predicted, measured): 0 where they agree, 1 where one is nothing
            beside the other. What is below a tenth of the first loss is compared with that tenth: a rate that is a
            little off would be a large factor in the end.
        theorem: Du, Zhai, Poczos & Singh 2018 on this network and these data.
    """

    kernel_eigenvalues: Tensor
    lambda_min: float
    lambda_max: float
    stable_lr: float
    lr: float
    contraction: float
    squared: bool
    predicted: Tensor
    measured: Tensor
    gap: float
    theorem: Theorem

    @property
    def stable(self) -> bool:
        """Whether the step is below the largest stable one."""
        return self.lr < self.stable_lr

    @property
    def linear(self) -> bool:
        """Whether the linearised dynamics predict the training to within 5 %."""
        return self.gap <= _CLOSE

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        steps, end = len(self.measured) - 1, float(self.measured[-1])
        if not self.stable:
            did = "and training diverged" if not end <= float(self.measured[0]) else "yet training did not diverge"
            return (
                f"lr = {self.lr:.3g} is too large: the linearised dynamics diverge above {self.stable_lr:.3g} "
                f"({did} in {steps} steps)"
            )
        went = f"the loss went from {float(self.measured[0]):.4g} to {float(self.measured[-1]):.4g} in {steps} steps"
        if self.lambda_max <= 0:
            return (
                "no rate and no largest stable step: the kernel vanishes here, or the loss's Hessian in the outputs, "
                f"as that of a loss linear in them does; at lr = {self.lr:.3g} {went}"
            )
        if not float(self.measured[-1]) <= float(self.measured[0]):
            return f"does not train at lr = {self.lr:.3g}: {went}, the linear dynamics stable"
        how = "as the kernel predicts" if self.linear else "near what the kernel predicts"
        if self.gap > _FAR:
            how = "but not as the kernel predicts: its features move, or curvature counts"
        slow = 1 - self.contraction
        pace = (
            f"the slowest direction shrinks by {slow:.2g} a step" if slow > 1e-12 else "some directions do not shrink"
        )
        return f"trains {how} (gap {self.gap:.2g} over {steps} steps at lr = {self.lr:.3g}); {pace}"

    def __str__(self) -> str:
        hessian = "constant" if self.squared else "at the present outputs"
        return "\n".join(
            [
                self.verdict,
                f"largest stable step {self.stable_lr:.4g} = 2 / lambda_max; lambda_min {self.lambda_min:.3g}, "
                f"lambda_max {self.lambda_max:.3g} (the loss as reduced; its Hessian {hessian})",
                f"loss {float(self.measured[0]):.4g} -> {float(self.measured[-1]):.4g}, predicted "
                f"{float(self.predicted[-1]):.4g}",
                str(self.theorem),
            ]
        )

    def plot(self) -> Any:
        """Predicted against measured loss, a ``matplotlib.figure.Figure``."""
        figure, (axis,) = new_axes(6.4, 4.0)
        axis.set(xlabel="step of gradient descent", ylabel="loss")
        found = {"color": COLORS[0], "linewidth": 2.2, "label": "measured"}
        told = {"color": COLORS[1], "linewidth": 1.6, "linestyle": "--", "label": "predicted by the kernel"}
        for curve, line, marker in ((self.measured, found, "o"), (self.predicted, told, "s")):
            size = {"o": 4, "s": 8}[marker]  # where they agree both are seen
            mark = {"marker": marker, "markersize": size, "markerfacecolor": "none"} if len(curve) <= 10 else {}
            axis.plot(curve.tolist(), **line, **mark)
        axis.xaxis.get_major_locator().set_params(integer=True)
        curves = torch.cat([self.measured, self.predicted])
        if bool((curves[curves.isfinite()] > 0).all()):
            axis.set_yscale("log")
        axis.set_title(f"lr = {self.lr:.3g}, largest stable step {self.stable_lr:.3g}, gap {self.gap:.2g}", fontsize=10)
        axis.legend(frameon=False)
        return figure


def ntk_convergence(
    net: nn.Module,
    x: Tensor,
    y: Any,
    loss: Loss | nn.Module,
    *,
    lr: float | None = None,
    steps: int = 100,
    delta: float = 0.1,
    batch_size: int | None = None,
    memory: int | None = None,
) -> NTKConvergence:
    """What the empirical kernel predicts of full-batch gradient descent, and a training beside it.

    Args:
        net: as for ``empirical_ntk``; it is copied, and the copy is trained.
        x: samples ``[N, ...]``.
        y: what the loss compares the outputs with.
        loss: ``loss(output, y)``, a number, or one for each sample whose mean is meant; torch's losses as they are,
            with their own reduction.
        lr: the step; half of the largest stable one when None.
        steps: how many are taken.
        delta: the probability of failure in the theorem's condition.
        batch_size: as in ``empirical_ntk``.
        memory: how many bytes the kernel may take, as in ``empirical_ntk``.

    Returns:
        The eigenvalues, the largest stable step, the rate, both curves and the theorem's condition.

    Raises:
        InvalidType: no module, no tensor, no loss.
        InvalidValue: as ``empirical_ntk``; outputs and y that do not fit the loss; a loss that does not depend on the
            outputs, or has no finite value.
    """
    check_integer(1, steps=steps)
    check_positive(optional=True, lr=lr)
    check_between(0, 1, delta=delta)
    check_samples(x=x)
    x = usable(x)
    theta = empirical_ntk(net, x, batch_size=batch_size, memory=memory)
    private = private_copy(net)
    with plainly(), torch.no_grad():
        out = private(x)
    space = Outputs.of(loss, out, y)
    room = free_memory(out.device) // 2 if memory is None else memory
    matrix = theta.transpose(1, 2).reshape(out.numel(), -1).to(space.start.dtype)
    linear = Curve.of(matrix, space, room)
    low, high = linear.range
    stable = 2 / high if high > 0 else math.inf
    step = lr if lr is not None else (stable / 2 if math.isfinite(stable) else 1.0)
    predicted = linear.losses(step, steps)
    measured = _train(private, x, space, step, steps)
    return NTKConvergence(
        kernel_eigenvalues=linear.values,
        lambda_min=low,
        lambda_max=high,
        stable_lr=stable,
        lr=step,
        contraction=max(abs(1 - step * low), abs(1 - step * high)),
        squared=space.scale is not None,
        predicted=predicted,
        measured=measured,
        gap=_gap(predicted, measured),
        theorem=wide_two_layer(net, x, space.scale, step, delta),
    )


def _train(net: nn.Module, x: Tensor, space: Outputs, lr: float, steps: int) -> Tensor:
    """The loss in plain gradient descent on a network of one's own; it stops where it is not finite."""
    free = list(trainable(net).values())
    found = []
    for step in range(steps + 1):
        with plainly():
            value = space.value(net(x))
        found.append(value.detach().double())
        if step == steps or not bool(value.isfinite()):
            break
        slopes = torch.autograd.grad(value, free, allow_unused=True)
        with torch.no_grad():
            for p, slope in zip(free, slopes, strict=True):
                if slope is not None:
                    p.sub_(slope, alpha=lr)
    return torch.stack(found).cpu()


def _gap(predicted: Tensor, measured: Tensor) -> float:
    if len(predicted) != len(measured) or not bool((predicted.isfinite() & measured.isfinite()).all()):
        return 1.0
    size = torch.maximum(predicted.abs(), measured.abs()).clamp_min(_NOTHING * float(measured[0].abs()))
    return float(((predicted - measured).abs() / size.clamp_min(1e-300)).max())

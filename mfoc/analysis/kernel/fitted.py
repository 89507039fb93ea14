"""What a kernel predictor has learned: predictions with their variances, leave-one-out, the marginal likelihood.

K is the NNGP kernel, Theta the NTK, r = ``ridge``, X the training inputs, x a new one; y the targets.

    kernel="nngp"   the posterior of the process, whose noise has variance r (Lee et al. 2018, eqs. 8 and 9):
                    mean A y,  variance K(x, x) - A K(X, x),  A = K(x, X) (K + r)^-1
    kernel="ntk"    the outputs of infinitely wide networks after gradient flow for a time t on
                    sum (f - y)^2 / 2 + r |theta - theta_0|^2 / 2, over their initialisations (Lee et al. 2019, eqs.
                    14-16, with the ridge of Hu, Li & Yu 2020):
                    mean A y,  variance K(x, x) + A K(X, X) A^T - A K(X, x) - K(x, X) A^T,
                    A = Theta(x, X) (Theta + r)^-1 (1 - exp(-(Theta + r) t))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mfoc.analysis.kernel.doors import check_alike
from mfoc.analysis.kernel.drawing import draw_left_out, draw_margins, draw_process
from mfoc.analysis.kernel.infinite import InfiniteNetwork, check_inputs
from mfoc.checks import check_integer, check_non_negative
from mfoc.errors import InvalidValue
from mfoc.printing import by_identity

_AT_ONCE = 2**24  # entries of the kernel between new and training inputs


@by_identity
class Prediction(NamedTuple):
    """What is known of the outputs at new inputs, each of which is Gaussian."""

    mean: Tensor  # [N] or [N, k], as the targets; for classes, of the indicator less 1 / k
    variance: Tensor  # of every output alike, [N]; without the ridge that stands for noise


@dataclass(frozen=True, eq=False, repr=False)
class FittedKernel:
    """A kernel predictor that has seen its data; print it, or ``.plot()`` it.

    Attributes:
        network: the infinitely wide network.
        kernel: "nngp" or "ntk".
        ridge: as of the predictor.
        x: the training inputs, [N, ...].
        targets: [N, k], float64.
        classes: the labels, in ascending order, [k]; None for numbers.
        single: whether the targets were given as [N].
        nngp: K(X, X), [N, N], float64.
        ntk: Theta(X, X), [N, N], float64.
        factor: Cholesky's, of the kernel with the ridge, [N, N].
    """

    network: InfiniteNetwork
    kernel: Literal["nngp", "ntk"]
    ridge: float
    x: Tensor
    targets: Tensor
    classes: Tensor | None
    single: bool
    nngp: Tensor
    ntk: Tensor
    factor: Tensor

    def predict(self, x: Tensor, *, time: float = math.inf) -> Prediction:
        """The mean and the variance of the outputs at new inputs.

        Args:
            x: ``[M, ...]``.
            time: how long the networks, in NTK parametrisation, have been trained (kernel "ntk" only): the learning
                rate times the steps of gradient descent on sum (f - y)^2 / 2. With the mean over N samples in place of
                the sum, divide by N; with ``torch.nn.MSELoss()``, which averages over k outputs too, by N k / 2.

        Returns:
            in the dtype of ``x``. Gradients are not passed on.

        Raises:
            InvalidType, InvalidValue: not such inputs as were fitted; a negative time, or one for kernel "nngp".
        """
        check_inputs(x=x)
        check_alike(self.x, x)
        check_non_negative(finite=False, time=time)
        if time != math.inf and self.kernel == "nngp":
            raise InvalidValue(f"time is {time}; a posterior does not train: expected kernel='ntk', or no time")
        parts = [self._predicted(part, time) for part in torch.split(x.detach(), max(1, _AT_ONCE // len(self.x)))]
        mean, variance = (torch.cat(part).to(x.dtype) for part in zip(*parts, strict=True))
        return Prediction(mean[:, 0] if self.single else mean, variance)

    def classify(self, x: Tensor, *, time: float = math.inf) -> Tensor:
        """The labels of new inputs, ``[M]``: the largest mean. Arguments and errors as ``predict``.

        Raises:
            InvalidValue: the targets were numbers.
        """
        return self._labels(self.predict(x, time=time).mean)

    def leave_one_out(self) -> Tensor:
        """The mean at every training input, had it not been there: [N] or [N, k].

        In closed form, y - (Q^-1 y) / diag Q^-1 with Q the kernel and the ridge (Rasmussen & Williams 2006, eq. 5.12);
        of the kernel "ntk" at time infinity.
        """
        mean = (self.targets - self._alpha / self._inverse_diagonal[:, None]).to(self.x.dtype)
        return mean[:, 0] if self.single else mean

    def log_marginal_likelihood(self) -> float:
        """The log of p(y | X), over all outputs (Rasmussen & Williams 2006, eq. 2.30).

        Raises:
            InvalidValue: the kernel is "ntk", which is no prior.
        """
        check_prior(self.kernel, "the marginal likelihood")
        return log_likelihood(self.targets, self._alpha, 2 * float(self.factor.diagonal().log().sum()))

    def __str__(self) -> str:
        """How well it predicts what it was fitted to, left out one by one; and what it is."""
        out = self.leave_one_out().double().reshape(self.targets.shape)
        if self.classes is None:
            spread = float((self.targets - self.targets.mean(0)).square().mean())
            error = float((out - self.targets).square().mean())
            share = f", {100 * error / spread:.3g}% of the variance" if spread > 0 else ""
            verdict = f"leave-one-out RMSE {error**0.5:.3g}{share}"
        else:
            right = (out.argmax(1) == self.targets.argmax(1)).double().mean()
            verdict = f"leave-one-out accuracy {100 * float(right):.1f}%"
        count = self.targets.shape[1]
        outputs = f"{count} output{'s' * (count != 1)}" if self.classes is None else f"{count} classes"
        what = f"{self.kernel.upper()} of {self.network}, ridge {self.ridge:.3g}"
        return f"{verdict}: {what}; {len(self.x)} points, {outputs}"

    __repr__ = __str__

    def plot(self, points: int = 100) -> Any:
        """How well it predicts, a ``matplotlib.figure.Figure``.

        One output of one variable: the mean and two standard deviations. Other numbers: each point as it is predicted
        when it is left out, against what it is. Classes: by how much the right one is ahead when the point is left out.

        Args:
            points: at which a function of one variable is drawn.

        Raises:
            InvalidType, InvalidValue: no number of points, 2 at least.
            MissingExtra: matplotlib is not installed.
        """
        check_integer(2, points=points)
        title, targets = str(self).partition(":")[0], self.targets.cpu()
        if self.classes is None and targets.shape[1] == 1 and self.x.numel() == len(self.x):
            return self._function(targets[:, 0], points, title)
        found = self.leave_one_out().double().reshape(targets.shape).cpu()
        if self.classes is None:
            return draw_left_out(targets, found, title)
        right = targets == targets.max(1, keepdim=True).values
        best = found.masked_fill(right, -math.inf).max(1).values
        own = found[right].reshape(len(found), -1)[:, 0]
        return draw_margins(torch.where(best.isfinite(), own - best, own), title)

    def _function(self, targets: Tensor, points: int, title: str) -> Any:
        x = self.x.reshape(-1)
        low, high = float(x.min()), float(x.max())
        room = 0.15 * (high - low) or 1.0
        at = torch.linspace(low - room, high + room, points, dtype=x.dtype, device=x.device)
        found = self.predict(at.reshape(-1, *self.x.shape[1:]))
        at, mean, deviation = (
            part.detach().cpu().double() for part in (at, found.mean.reshape(-1), found.variance.sqrt())
        )
        return draw_process(x.cpu().double(), targets, at, mean, deviation, title)

    def _predicted(self, x: Tensor, time: float) -> tuple[Tensor, Tensor]:
        nngp, ntk = self.network.kernels(x, self.x)
        prior = self.network.diagonals(x)[0]
        if self.kernel == "nngp":
            weights = self._weights(nngp, time)  # A, [M, N]
            variance = prior - torch.linalg.vecdot(weights, nngp)
        else:
            weights = self._weights(ntk, time)
            variance = prior + torch.linalg.vecdot(weights, weights @ self.nngp - 2 * nngp)
        return weights @ self.targets, variance.clamp(min=0)

    def _weights(self, cross: Tensor, time: float) -> Tensor:
        if time == math.inf:
            solved: Tensor = torch.cholesky_solve(cross.mT, self.factor)
            return solved.mT
        values, vectors = self._spectrum
        done = torch.where(values > 0, -torch.expm1(-values * time) / values.clamp(min=1e-300), time)
        return (cross @ vectors * done) @ vectors.mT

    def _labels(self, mean: Tensor) -> Tensor:
        if self.classes is None:
            raise InvalidValue("the targets were numbers; expected classes, integers or booleans, in fit(x, y)")
        return self.classes[mean.argmax(1)]

    @cached_property
    def _alpha(self) -> Tensor:
        alpha: Tensor = torch.cholesky_solve(self.targets, self.factor)
        return alpha

    @cached_property
    def _inverse_diagonal(self) -> Tensor:
        eye = torch.eye(len(self.factor), dtype=self.factor.dtype, device=self.factor.device)
        root: Tensor = torch.linalg.solve_triangular(self.factor, eye, upper=False)
        return root.square().sum(0)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Of the kernel with the ridge."""
        values, vectors = torch.linalg.eigh(self.nngp if self.kernel == "nngp" else self.ntk)
        return values.clamp(min=0) + self.ridge, vectors


def factorise(matrix: Tensor, ridge: float, x: Tensor) -> Tensor:
    """Cholesky's factor of the kernel with the ridge.

    Args:
        matrix: the kernel, [N, N].
        ridge: what is added to its diagonal.
        x: the inputs it is of, [N, ...].

    Raises:
        InvalidValue: there is none, or it is rounding; it says why, and what to do.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix + ridge * torch.eye(len(matrix), device="cpu").to(matrix))
    size = float(matrix.diagonal().mean())
    worst = float(factor.diagonal().square().min() / matrix.diagonal().max()) if not int(info) else 0.0
    if not int(info) and worst > 1e-15 * len(matrix):
        return factor
    raise InvalidValue(
        f"the kernel with ridge {ridge:g} has no inverse: {_reason(x)}. Take a ridge, such as {1e-6 * size:.2g}, or "
        "the one that with_best_ridge finds"
    )


def _reason(x: Tensor) -> str:
    _, places, counts = torch.unique(x.reshape(len(x), -1), dim=0, return_inverse=True, return_counts=True)
    if int(counts.max()) > 1:
        first, second = (places == counts.argmax()).nonzero()[:2, 0].tolist()
        return f"{len(x) - len(counts)} training inputs are repeated (x[{first}] is x[{second}])"
    return "some training inputs are nearly the same, or nearly along one line, or the kernel is of low rank"


def check_prior(kernel: str, what: str) -> None:
    """Refuses the NTK where a prior is needed.

    Raises:
        InvalidValue: the kernel is the NTK.
    """
    if kernel != "nngp":
        raise InvalidValue(f"{what} is of a prior, which the NTK is not; expected kernel='nngp'")


def log_likelihood(targets: Tensor, alpha: Tensor, log_determinant: float) -> float:
    """Of a Gaussian process (Rasmussen & Williams 2006, eq. 2.30), over all outputs.

    Args:
        targets: y, [N, k].
        alpha: (K + r)^-1 y, [N, k].
        log_determinant: of K + r.
    """
    n, k = targets.shape
    return -0.5 * (float((targets * alpha).sum()) + k * log_determinant + k * n * math.log(2 * math.pi))

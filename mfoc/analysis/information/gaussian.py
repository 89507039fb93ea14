"""What is known in closed form: a Gaussian channel, and the information bottleneck of Gaussian variables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc.checks import check_instance, check_integer, check_plain, check_positive, check_tensor
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, INK, new_axes
from mfoc.printing import by_identity


def gaussian_information(covariance: Tensor | float, noise: Tensor | float) -> float:
    """I(X; X + noise) of Gaussian variables, in nats: half of ln det(I + noise^-1 covariance).

    Args:
        covariance: of X ``[d, d]``, singular or not; a number is the variance of a single coordinate. Of a linear layer
            W X it is W covariance W^T.
        noise: covariance of the noise ``[d, d]``, or a number, the variance of each coordinate.

    Returns:
        The information (Cover & Thomas 2006, "Elements of information theory", ch. 9, parallel Gaussian channels).

    Raises:
        InvalidType: neither tensors of floating-point numbers, of one dtype, nor numbers.
        InvalidValue: matrices that are not square, finite, symmetric and positive semidefinite; noise that is singular,
            or of another size.
    """
    if isinstance(covariance, Tensor) and isinstance(noise, Tensor):
        _check_one_kind(covariance=covariance, noise=noise)
    signal = checked_covariance("covariance", _as_matrix(covariance, like=noise))
    if not isinstance(noise, Tensor):
        check_positive(noise=noise)
        noise = noise * torch.eye(len(signal), dtype=signal.dtype, device=signal.device)
    white = checked_covariance("noise", noise, definite=True)
    if white.shape != signal.shape:
        raise InvalidValue(f"noise is {tuple(white.shape)} and covariance {tuple(signal.shape)}; expected one size")
    root = torch.linalg.cholesky(white)
    ratio = _whitened(signal, root, root)
    return float(torch.linalg.eigvalsh((ratio + ratio.mT) / 2).clamp_min(0).log1p().sum()) / 2


@by_identity
@dataclass(frozen=True, eq=False)
class GaussianBottleneck:
    """The optimal compression T of a Gaussian X about a Gaussian Y, at one place of the trade-off.

    T = A X + xi with xi ~ N(0, I) minimises I(T;X) - beta I(T;Y) (Chechik, Globerson, Tishby & Weiss 2005, "Information
    bottleneck for Gaussian variables", JMLR 6, theorem 3.1). The trade-off of the variational bottleneck (Alemi et al.
    2017), E loss + beta' I(T;X), is the same with beta' = 1 / beta.

    Attributes:
        beta: the trade-off; more keeps more.
        projection: A ``[k, d]``, a row for each direction that is kept, the most telling first; k of 0 where beta is
            below the first critical one. Any rotation of the rows is optimal, too.
        eigenvalues: lambda of Sigma_(x|y) Sigma_x^-1, ascending ``[d]``: the share of a direction's variance that
            Y does not tell; 1 less its squared canonical correlation.
        critical_betas: 1 / (1 - lambda), where the directions enter one by one ``[d]``; infinite for those of which Y
            tells nothing.
        information_x: I(T;X) in nats.
        information_y: I(T;Y) in nats.
        total: I(X;Y) in nats, which I(T;Y) tends to as beta grows.
    """

    beta: float
    projection: Tensor
    eigenvalues: Tensor
    critical_betas: Tensor
    information_x: float
    information_y: float
    total: float

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        kept, first = len(self.projection), float(self.critical_betas[0])
        if not kept and first == math.inf:
            return "nothing is kept at any beta: X tells nothing of Y"
        if not kept:
            return f"nothing is kept at beta = {self.beta:.4g}: the first direction enters at {first:.4g}"
        share = self.information_y / self.total
        return (
            f"{kept} of {len(self.eigenvalues)} directions are kept at beta = {self.beta:.4g}: I(T;X) = "
            f"{self.information_x:.4g} nats tell {share:.0%} of what X tells of Y ({self.total:.4g} nats)"
        )

    def __str__(self) -> str:
        return self.verdict

    def curve(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """I(T;X) and I(T;Y) at other trade-offs, both of the shape of ``betas``; the slope of the curve is 1 / beta.

        Raises:
            InvalidType, InvalidValue: no tensor of positive finite numbers.
        """
        check_tensor("a tensor of trade-offs", floating=False, betas=betas)
        if not bool((betas > 0).all()):
            raise InvalidValue("betas holds numbers that are not positive and finite")
        return _informations(self.eigenvalues, 1 / self.critical_betas, betas.to(self.eigenvalues))

    def plot(self, points: int = 200) -> Any:
        """The information curve, what is possible below it, and this place on it: a ``matplotlib.figure.Figure``."""
        check_integer(2, points=points)
        figure, (axis,) = new_axes(6.4, 4.2)
        critical = self.critical_betas[self.critical_betas.isfinite()]
        if len(critical):
            last = max(2 * self.beta, 20 * float(critical[-1]))
            betas = float(critical[0]) * torch.logspace(
                0, 1, points, last / float(critical[0]), dtype=critical.dtype, device="cpu"
            )
            x, y = self.curve(betas)
            axis.plot(x.tolist(), y.tolist(), color=COLORS[0], label="the optimum")
            axis.fill_between(x.tolist(), y.tolist(), color=COLORS[0], alpha=0.08, linewidth=0)
            enter = self.curve(critical)
            axis.plot(enter[0].tolist(), enter[1].tolist(), "|", color=INK, markersize=12, label="a direction enters")
        axis.plot(self.information_x, self.information_y, "o", color=COLORS[1], label=f"beta = {self.beta:.3g}")
        axis.axhline(self.total, color=INK, linestyle=":", label="I(X;Y)")
        axis.set(xlabel="I(T;X) [nats]", ylabel="I(T;Y) [nats]", title="What a compression can tell of Y")
        axis.legend(frameon=False, loc="lower right")
        return figure


def gaussian_bottleneck(
    covariance_x: Tensor, covariance_xy: Tensor, covariance_y: Tensor, beta: float
) -> GaussianBottleneck:
    """The information bottleneck of jointly Gaussian X ``[d]`` and Y ``[m]``, in closed form.

    Args:
        covariance_x: ``[d, d]``.
        covariance_xy: ``[d, m]``.
        covariance_y: ``[m, m]``.
        beta: the trade-off in I(T;X) - beta I(T;Y), above 0.

    Returns:
        The optimal projection and its informations.

    Raises:
        InvalidType: no tensors of floating-point numbers, or of several dtypes.
        InvalidValue: several devices, sizes that do not fit, matrices that are singular, or no covariance together; a
            direction of X that Y determines, so that I(X;Y) is infinite.
    """
    check_positive(beta=beta)
    sigma_x = checked_covariance("covariance_x", covariance_x, definite=True)
    sigma_y = checked_covariance("covariance_y", covariance_y, definite=True)
    check_instance(Tensor, "a tensor [d, m]", covariance_xy=covariance_xy)
    _check_one_kind(covariance_x=covariance_x, covariance_xy=covariance_xy, covariance_y=covariance_y)
    if covariance_xy.shape != (len(sigma_x), len(sigma_y)) or not bool(covariance_xy.isfinite().all()):
        raise InvalidValue(
            f"covariance_xy is {tuple(covariance_xy.shape)}; expected finite numbers, ({len(sigma_x)}, {len(sigma_y)})"
        )
    root_x, root_y = torch.linalg.cholesky(sigma_x), torch.linalg.cholesky(sigma_y)
    # Canonical correlations: 1 - lambda is their square, without the loss of digits in a difference.
    sides, correlations, _ = torch.linalg.svd(_whitened(covariance_xy.detach().to(sigma_x), root_x, root_y))
    squared = torch.zeros(len(sigma_x), dtype=sigma_x.dtype, device=sigma_x.device)
    squared[: len(correlations)] = correlations.square()
    slack = _rounding(covariance_xy, 10 * len(squared))
    if float(squared[0]) >= 1 - slack:
        raise InvalidValue(
            f"a direction of x has the squared correlation {float(squared[0]):.6g} with y; expected less than 1: at 1 "
            "y determines it and I(X;Y) is infinite, and above 1 the three are no covariance of one vector"
        )
    squared = torch.where(squared > slack**2, squared, 0)
    values = 1 - squared
    kept = beta * squared > 1
    gain = ((beta * squared - 1) / values)[kept].sqrt()  # r_i is 1: the eigenvectors are scaled to unit variance
    directions = torch.linalg.solve_triangular(root_x.mT, sides, upper=True).mT[kept]
    of_x, of_y = _informations(values, squared, values.new_tensor(beta))
    return GaussianBottleneck(
        beta=beta,
        projection=(gain[:, None] * directions).to(covariance_x.dtype),
        eigenvalues=values.to(covariance_x.dtype),
        critical_betas=(1 / squared).to(covariance_x.dtype),
        information_x=float(of_x),
        information_y=float(of_y),
        total=float((-squared).log1p().sum().abs()) / 2,
    )


def _informations(values: Tensor, squared: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    """I(T;X) and I(T;Y) at each beta: sums over the directions that have entered.

    Both lambda and 1 - lambda are given: of a direction that tells almost nothing, or almost all, one is not to be had
    from the other.
    """
    told = betas[..., None] * squared
    inside = told > 1
    of_x = torch.where(inside, ((told - 1) / values).log1p(), 0)
    of_y = torch.where(inside, of_x - told.log(), 0)
    return of_x.sum(-1) / 2, of_y.sum(-1) / 2


def checked_covariance(name: str, matrix: Tensor, *, definite: bool = False) -> Tensor:
    """A covariance matrix ``[d, d]`` in float64, made symmetric to the last bit.

    What is singular does not depend on the units of its coordinates: the matrix of correlations is asked.

    Raises:
        InvalidType: no tensor of floating-point numbers.
        InvalidValue: it is not square, finite, symmetric or positive semidefinite; with ``definite``, singular.
    """
    check_plain("a covariance matrix, a tensor [d, d]", **{name: matrix})
    matrix = matrix.detach()
    if not matrix.is_floating_point():
        raise InvalidType(f"{name} is {matrix.dtype}; expected floating-point numbers")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
        raise InvalidValue(f"{name} has shape {tuple(matrix.shape)}; expected a square matrix, [d, d]")
    if not bool(matrix.isfinite().all()):
        raise InvalidValue(f"{name} holds NaN or infinite values")
    slack = _rounding(matrix, 100 * len(matrix))
    size = float(matrix.abs().max())
    if float((matrix - matrix.mT).abs().max()) > slack * size:
        raise InvalidValue(f"{name} is not symmetric; expected a covariance, such as ({name} + {name}.mT) / 2")
    even = matrix.double()
    even = (even + even.mT) / 2
    least = float(torch.linalg.eigvalsh(even)[0])
    if least < -slack * size:
        raise InvalidValue(f"{name} has the eigenvalue {least:.4g}; expected none below 0, a covariance")
    if definite and _least_of_correlations(even) <= _rounding(matrix, len(matrix)):
        raise InvalidValue(
            f"{name} is singular; leave out the coordinates that others "
            "determine, or add the variance of a measurement to its diagonal"
        )
    return even


def _rounding(given: Tensor, factor: int) -> float:
    """What rounding of the numbers given may do, relatively; no more than a share that is small in any dtype."""
    return min(factor * torch.finfo(given.dtype).eps, 0.05)


def _least_of_correlations(covariance: Tensor) -> float:
    """The least eigenvalue of the matrix of correlations; 0 where a variance is."""
    deviations = covariance.diagonal().clamp_min(0).sqrt()
    if not bool((deviations > 0).all()):
        return 0.0
    return float(torch.linalg.eigvalsh(covariance / deviations / deviations[:, None])[0])


def _check_one_kind(**matrices: Tensor) -> None:
    (first, one), *others = matrices.items()
    for name, other in others:
        if other.dtype != one.dtype:
            raise InvalidType(f"{name} is {other.dtype} and {first} is {one.dtype}; expected one dtype")
        if other.device != one.device:
            raise InvalidValue(f"{name} is on {other.device} and {first} on {one.device}; expected one device")


def _as_matrix(value: Any, *, like: Any) -> Any:
    """A number as the covariance of a single coordinate."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        device = like.device if isinstance(like, Tensor) else "cpu"
        return torch.full((1, 1), float(value), dtype=torch.float64, device=device)
    return value


def _whitened(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """L^-1 M R^-T, of lower triangular factors."""
    half = torch.linalg.solve_triangular(left, matrix, upper=False)
    found: Tensor = torch.linalg.solve_triangular(right, half.mT, upper=False).mT
    return found

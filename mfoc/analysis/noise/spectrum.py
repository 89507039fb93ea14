"""Sharpness: the largest eigenvalues of the Hessian of a loss, its trace, and the edge of stability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfoc.analysis.noise.drawing import draw_spectrum
from mfoc.analysis.noise.samples import Samples
from mfoc.checks import check_between, check_integer, check_positive
from mfoc.errors import InvalidValue, require
from mfoc.printing import by_identity
from mfoc.problem import Problem
from mfoc.seeding import mixed_seed, seeded

_SMALL = 256  # parameters up to which the whole Hessian is formed, which takes no longer
_REPEATS, _PRODUCTS = 6, 16  # of XTrace
_EDGE = 0.1  # how near to 1 is at the edge


@by_identity
@dataclass(frozen=True, eq=False)
class Sharpness:
    """The top of the spectrum of a loss's Hessian; print it, or ``.plot()`` it.

    Attributes:
        eigenvalues: the largest, descending ``[top]``.
        errors: norms of H v - lambda v for unit v: some eigenvalue lies within each ``[top]``.
        trace: tr(H).
        trace_error: its standard error; zero where it is exact.
        size: P, the number of parameters.
        lr: the learning rate, or None.
        momentum: of heavy-ball momentum.
    """

    eigenvalues: Tensor
    errors: Tensor
    trace: float
    trace_error: float
    size: int
    lr: float | None
    momentum: float

    @property
    def value(self) -> float:
        """The sharpness: the largest eigenvalue."""
        return float(self.eigenvalues[0])

    @property
    def threshold(self) -> float:
        """Where full-batch gradient descent is unstable on a quadratic: 2 (1 + momentum) / lr; NaN without a rate.

        Cohen, Kaur, Li, Kolter & Talwalkar (2021), arXiv:2103.00065, sec. 2 and appendix B.
        """
        return math.nan if self.lr is None else 2 * (1 + self.momentum) / self.lr

    @property
    def ratio(self) -> float:
        """Sharpness over threshold: 1 at the edge of stability."""
        return self.value / self.threshold

    @property
    def regime(self) -> str:
        """One of "stable", "edge" (within 10 %), "unstable"; empty without a learning rate."""
        if self.lr is None:
            return ""
        return "stable" if self.ratio < 1 - _EDGE else "edge" if self.ratio <= 1 + _EDGE else "unstable"

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        shown = f"sharpness {self.value:.4g}"
        if self.value <= 0:
            return f"{shown}: the loss curves up in no direction"
        limit = f"{self.ratio:.3g} of the threshold {self.threshold:.4g}"
        return {
            "": f"{shown}: gradient descent is stable on its quadratic model up to lr = {2 / self.value:.3g}",
            "stable": f"below the edge of stability: {shown} is {limit}",
            "edge": f"at the edge of stability: {shown} is {limit}",
            "unstable": f"above the edge of stability: {shown} is {limit}; the sharpest direction grows in every step",
        }[self.regime]

    def __str__(self) -> str:
        top = ", ".join(f"{float(value):.4g}" for value in self.eigenvalues)
        spread = f" +- {self.trace_error:.2g}" if self.trace_error else ""
        return f"{self.verdict}\nlargest eigenvalues {top}; trace {self.trace:.4g}{spread} ({self.size} parameters)"

    def plot(self) -> Any:
        """The largest eigenvalues with their errors, and the threshold of a learning rate.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        return draw_spectrum(self.eigenvalues, self.errors, self.threshold, self.verdict)


class Hessian:
    """The Hessian of a mean loss as an operator, for curvlinops and scipy.

    Products are by two backward passes. ``curvlinops.HessianLinearOperator`` takes ``torch.func.jvp`` of ``jacrev``,
    which in the weights of ``LayerNorm`` torch 2.15 gets wrong without an error.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.shape = (samples.size, samples.size)
        self.dtype, self.device = samples.leaves[0].dtype, samples.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """H times a vector ``[P]`` or the columns of a matrix ``[P, k]``."""
        rows = vectors.mT if vectors.dim() == 2 else vectors[None]
        found = self.samples.hessian_products(rows).to(self.dtype)
        return found.mT if vectors.dim() == 2 else found[0]


def sharpness(
    net: nn.Module | Problem[Any],
    loss: Any,
    data: Any,
    *,
    top: int = 1,
    lr: float | None = None,
    momentum: float = 0.0,
    tol: float = 1e-4,
    batch_size: int | None = None,
    seed: int = 0,
) -> Sharpness:
    """The largest eigenvalues of the Hessian of a mean loss, its trace, and whether a step sits at the edge.

    Eigenvalues are by Lanczos (scipy's ARPACK), the trace by XTrace (Epperly, Tropp & Webber 2024, arXiv:2301.07825) of
    curvlinops (the extra ``spectra``). With up to 256 parameters the Hessian is formed, which needs neither.

    Args:
        net: any module that treats the samples of a batch one by one, or a ``Problem`` whose particles do not interact.
        loss: as for ``gradient_noise``.
        data: as for ``gradient_noise``: all of what a full-batch step would see.
        top: how many eigenvalues.
        lr: a learning rate to hold against the sharpness.
        momentum: of heavy-ball momentum, with that rate.
        tol: relative tolerance of the eigenvalues.
        batch_size: samples that are differentiated at once.
        seed: of the random start and of XTrace.

    Raises:
        InvalidType, InvalidValue: what ``gradient_noise`` refuses; more eigenvalues than parameters; half precision; a
            loss without second derivatives; eigenvalues that do not converge.
        MissingExtra: curvlinops is not installed.
    """
    check_integer(1, top=top)
    check_positive(optional=True, lr=lr)
    check_between(-1, 1, momentum=momentum)
    check_positive(tol=tol)
    check_integer(0, seed=seed)
    samples = Samples.of(net, loss, data, batch_size=batch_size)
    check_integer(1, samples.size, top=top)
    if samples.leaves[0].dtype.itemsize < 4:
        raise InvalidValue(f"the parameters are {samples.leaves[0].dtype}; eigenvalues need float32 at least: .float()")
    hessian = Hessian(samples)
    if samples.size <= _SMALL:
        values = torch.linalg.eigvalsh(samples.hessian())
        eigenvalues, errors = values.flip(0)[:top], torch.zeros(top, device="cpu")
        trace, spread = float(values.sum()), 0.0
    else:
        xtrace = require("curvlinops", "spectra").xtrace  # missed before there is anything to wait for
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(samples.size, generator=generator, dtype=hessian.dtype, device="cpu")
        if bool((hessian @ start.to(hessian.device)).any()):
            eigenvalues, errors = _largest(hessian, top, tol, start)
            trace, spread = _trace(xtrace, hessian, seed)
        else:  # a Hessian of zero, which neither can take
            eigenvalues, errors = torch.zeros(2, top, device="cpu")
            trace, spread = 0.0, 0.0
    like = samples.leaves[0]
    return Sharpness(eigenvalues.to(like), errors.to(like), trace, spread, samples.size, lr, float(momentum))


def _largest(hessian: Hessian, top: int, tol: float, start: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, descending, and the errors of their vectors."""
    linalg = require("scipy.sparse.linalg", "spectra")
    size = hessian.shape[0]
    kind = np.dtype(str(hessian.dtype).removeprefix("torch."))

    def product(v: Any) -> Any:
        return (hessian @ torch.from_numpy(np.asarray(v, kind)).reshape(size, -1).to(hessian.device)).cpu().numpy()

    matrix = linalg.LinearOperator(hessian.shape, matvec=product, matmat=product, dtype=kind)
    if top >= size - 1:  # more than ARPACK can give
        values, vectors = (part.cpu().numpy().astype(kind) for part in torch.linalg.eigh(hessian.samples.hessian()))
    else:
        try:
            values, vectors = linalg.eigsh(matrix, k=top, which="LA", v0=start.numpy(), tol=tol)
        except linalg.ArpackNoConvergence as error:
            raise InvalidValue(
                f"{len(error.eigenvalues)} of {top} eigenvalues converged to tol={tol:g}: take a larger tol, or fewer"
            ) from error
    order = np.argsort(values)[::-1][:top]
    values, vectors = values[order], vectors[:, order]
    errors = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    return torch.from_numpy(values.copy()), torch.from_numpy(errors)


def _trace(xtrace: Any, hessian: Hessian, seed: int) -> tuple[float, float]:
    """The trace, and its standard error over independent repeats."""
    found = []
    for repeat in range(_REPEATS):
        with seeded(mixed_seed(seed, repeat), hessian.device), torch.no_grad():
            try:
                found.append(float(xtrace(hessian, _PRODUCTS)))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of a rank below its directions
                return _trace_of_low_rank(hessian), 0.0
    sample = torch.tensor(found, dtype=torch.float64, device="cpu")
    return float(sample.mean()), float(sample.std()) / math.sqrt(_REPEATS)


def _trace_of_low_rank(hessian: Hessian) -> float:
    """The trace, exactly: the images of more random directions than the rank span the range."""
    draws = torch.randn(hessian.shape[0], _PRODUCTS, dtype=hessian.dtype, device=hessian.device)
    basis = torch.linalg.qr(hessian @ draws).Q
    return float((basis * (hessian @ basis)).sum())

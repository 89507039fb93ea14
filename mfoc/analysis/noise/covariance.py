"""The noise of a stochastic gradient: the covariance of one sample's gradient, and how it lies to the Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.analysis.noise.samples import Samples, signs
from mfoc.checks import check_choice, check_flag, check_integer
from mfoc.errors import InvalidValue
from mfoc.figures import COLORS, new_axes
from mfoc.printing import by_identity
from mfoc.problem import Problem
from mfoc.tree import Tree

_FULL = 2000  # the most parameters whose whole covariance is formed


@by_identity
@dataclass(frozen=True, eq=False)
class Alignment:
    """How gradient noise lies to the curvature of the loss.

    Attributes:
        hessian_trace: tr(H), H the Hessian of the mean loss.
        noise_curvature: tr(H Sigma).
        anisotropy: tr(H Sigma) / (tr(H) tr(Sigma) / P): 1 where the noise is isotropic, up to P where it lies along the
            sharpest directions (Zhu, Wu, Yu, Wu & Ma 2019, arXiv:1803.00195); NaN where tr(H) is not positive.
        error: standard error of the anisotropy over probes; zero with ``covariance="full"``, which takes none.
        cosine: <H, Sigma> / (|H| |Sigma|) in the Frobenius norm; None unless ``covariance="full"``.
        hessian_eigenvalues: of H, ascending ``[P]``; None unless ``covariance="full"``.
    """

    hessian_trace: float
    noise_curvature: float
    anisotropy: float
    error: float
    cosine: float | None = None
    hessian_eigenvalues: Tensor | None = None


@by_identity
@dataclass(frozen=True, eq=False)
class GradientNoise:
    """Mean and covariance of the gradient of one sample; a batch of B draws has the covariance Sigma / B.

    Attributes:
        mean: the mean gradient G, shaped as the parameters: {name: tensor}, or the controls of a problem.
        kind: what is kept of Sigma: "full", "diagonal" or "trace".
        covariance: Sigma, divided by n - 1: ``[P, P]`` in the order of the parameters, or its diagonal, shaped as they
            are, or None.
        trace: tr(Sigma).
        trace_error: its standard error over samples.
        signal: |G|^2 of the population that the samples are drawn from, |mean|^2 - tr(Sigma) / n: without bias, and so
            perhaps negative where it is not told from zero.
        samples: n.
        size: P.
        alignment: how Sigma lies to the Hessian; None unless asked for.
    """

    mean: Tree
    kind: str
    covariance: Tree
    trace: float
    trace_error: float
    signal: float
    samples: int
    size: int
    alignment: Alignment | None

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        size = float(tree.norm(self.mean))
        text = f"the gradient of one sample has a standard deviation of {math.sqrt(self.trace):.3g} about "
        if self.trace > self.samples * size**2 / 2:
            text += f"a mean that is mostly noise itself over {self.samples} samples"
        else:
            text += f"a mean of size {size:.3g}"
        if self.alignment is None or math.isnan(self.alignment.anisotropy):
            return text
        found = self.alignment.anisotropy
        how = "as isotropic noise would" if abs(found - 1) <= 0.1 else f"{found:.3g} times as much as isotropic noise"
        return f"{text}; it meets curvature {how}"

    def __str__(self) -> str:
        lines = [
            self.verdict,
            f"tr(Sigma) = {self.trace:.4g} +- {self.trace_error:.2g}, |G|^2 = {self.signal:.4g} without bias "
            f"({self.samples} samples, {self.size} parameters)",
        ]
        if self.alignment is not None:
            a = self.alignment
            beside = "" if a.cosine is None else f", cosine of H and Sigma {a.cosine:.3g}"
            lines.append(
                f"tr(H) = {a.hessian_trace:.4g}, tr(H Sigma) = {a.noise_curvature:.4g}, anisotropy {a.anisotropy:.3g} "
                f"+- {a.error:.2g}{beside}"
            )
        return "\n".join(lines)

    def plot(self) -> Any:
        """Eigenvalues of Sigma, or the variances on its diagonal, largest first, a ``matplotlib.figure.Figure``.

        Raises:
            InvalidValue: with ``covariance="trace"`` there are none.
        """
        if self.covariance is None:
            raise InvalidValue('only the trace was asked for; take covariance="full" or "diagonal"')
        full = self.kind == "full"
        values = torch.linalg.eigvalsh(self.covariance.double()) if full else tree.ravel(self.covariance).double()
        figure, (axis,) = new_axes(6.4, 4.0)
        name = "eigenvalue of Σ" if full else "variance of one entry"
        axis.set(xlabel="place, the largest first", ylabel=name, yscale="log")
        spectra = [(name, values)]
        if self.alignment is not None and self.alignment.hessian_eigenvalues is not None:
            spectra.append(("eigenvalue of H", self.alignment.hessian_eigenvalues))
            axis.set_ylabel("eigenvalue")
        for color, marker, (label, found) in zip(COLORS, "os", spectra, strict=False):
            ranked = found.sort(descending=True).values
            kept = ranked[ranked > 1e-14 * ranked.abs().max()]  # the rest is rounding, and has no logarithm
            every = max(1, len(kept) // 40)
            mark = {"marker": marker, "markersize": 3.5, "markevery": every}
            axis.plot(range(1, len(kept) + 1), kept.tolist(), color=color, label=label, **mark)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False)
        return figure


def gradient_noise(
    net: nn.Module | Problem[Any],
    loss: Any,
    data: Any,
    *,
    covariance: str = "diagonal",
    curvature: bool = False,
    probes: int = 32,
    batch_size: int | None = None,
    seed: int = 0,
) -> GradientNoise:
    """The mean and the covariance of the gradient of one sample, at the parameters where the network is.

    Gradients are taken sample by sample by ``torch.func``, a chunk at a time; one by one where the loss cannot be
    vectorised. Nothing of the network changes.

    Args:
        net: any module that treats the samples of a batch one by one, or a ``Problem`` whose particles do not interact.
        loss: ``loss(output, target)``, of torch or returning one number for each sample, or their mean. What is
            looked at is the mean over samples, also of a torch loss with ``reduction="sum"``. Of a problem its
            controls, or what has them; its initial guess when None.
        data: what ``mfoc.population`` takes, all of it: a pair (x, y), a Dataset, particles.
        covariance: what is kept of Sigma: "full" (of 2000 parameters at most), "diagonal" or "trace".
        curvature: also how Sigma lies to the Hessian. With "full" by P products with the Hessian, exactly; else by
            ``2 probes`` of them. (Signs s_i make v = sum_i s_i (g_i - G) / sqrt(n - 1) with E v'Hv = tr(H Sigma).)
        probes: random directions for each of the two traces.
        batch_size: samples that are differentiated at once; as many as 128 MiB hold, up to 256, when None.
        seed: of the probes.

    Raises:
        InvalidType: no module or problem, no loss, no data.
        InvalidValue: one sample; nothing to train; samples that interact, as by batch norm in training mode; dropout in
            training mode; a loss that does not fit; gradients that are not finite; a covariance too large.
    """
    check_choice("full", "diagonal", "trace", covariance=covariance)
    check_flag(curvature=curvature)
    check_integer(2, probes=probes)
    check_integer(0, seed=seed)
    samples = Samples.of(net, loss, data, batch_size=batch_size)
    if covariance == "full" and samples.size > _FULL:
        raise InvalidValue(
            f'there are {samples.size} parameters, and covariance="full" is for {_FULL} at most, as it takes their '
            'square; take "diagonal" or "trace", or freeze parameters by requires_grad_(False)'
        )
    n, mean = len(samples), samples.gradient()
    full = covariance == "full"
    second = mean.new_zeros((samples.size,) * (2 if full else 1))
    lengths = []
    for rows in samples.rows():
        centred = rows - mean
        second += centred.mT @ centred if full else centred.square().sum(0)
        lengths.append(centred.square().sum(1))
    second /= n - 1
    length = torch.cat(lengths) * (n / (n - 1))
    trace = float(length.mean())
    kept = None if covariance == "trace" else second.to(samples.leaves[0]) if full else _shaped(samples, second)
    aligned = None
    if curvature:
        aligned = _exactly(samples, second, trace) if full else _by_probes(samples, mean, trace, probes, seed)
    return GradientNoise(
        mean=_shaped(samples, mean),
        kind=covariance,
        covariance=kept,
        trace=trace,
        trace_error=float(length.std()) / math.sqrt(n),
        signal=float(mean.square().sum()) - trace / n,
        samples=n,
        size=samples.size,
        alignment=aligned,
    )


def _shaped(samples: Samples, vector: Tensor) -> Tree:
    return samples.shaped(vector.to(samples.leaves[0].dtype))


def _exactly(samples: Samples, sigma: Tensor, trace: float) -> Alignment:
    hessian = samples.hessian()
    own, met = float(hessian.trace()), float((hessian * sigma).sum())
    size = float(hessian.norm() * sigma.norm())
    return Alignment(
        own,
        met,
        _anisotropy(met, own, trace, samples.size),
        0.0,
        met / size if size > 0 else 0.0,
        torch.linalg.eigvalsh(hessian),
    )


def _by_probes(samples: Samples, mean: Tensor, trace: float, probes: int, seed: int) -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    n, size = len(samples), samples.size
    units = signs(probes, size, generator=generator, like=mean)
    own = _forms(samples, lambda k: units[k], probes)
    weights = signs(probes, n, generator=generator, like=mean) / math.sqrt(n - 1)
    met = _forms(samples, lambda k: samples.gradient(weights=weights[k]) - weights[k].sum() * mean, probes)
    first, second = float(own.mean()), float(met.mean())
    found = _anisotropy(second, first, trace, size)
    spread = [float(each.std()) / math.sqrt(probes) / abs(float(each.mean()) or math.nan) for each in (own, met)]
    return Alignment(first, second, found, abs(found) * math.hypot(*spread))


def _forms(samples: Samples, direction: Callable[[int], Tensor], probes: int) -> Tensor:
    """The forms v'Hv of random directions v, eight at a time ``[probes]``."""
    found = []
    for first in range(0, probes, 8):
        v = torch.stack([direction(k) for k in range(first, min(first + 8, probes))])
        found.append((v * samples.hessian_products(v)).sum(1))
    return torch.cat(found)


def _anisotropy(met: float, own: float, trace: float, size: int) -> float:
    return met * size / (own * trace) if own > 0 and trace > 0 else math.nan

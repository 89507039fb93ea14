"""Gradient noise scales: batch sizes beyond which the noise of a step no longer counts."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.analysis.noise.drawing import draw_scales
from mfoc.analysis.noise.ratio import signal_to_noise
from mfoc.analysis.noise.samples import Samples, curved_products
from mfoc.checks import check_between, check_instance, check_integer
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, new_axes
from mfoc.printing import by_identity
from mfoc.problem import Problem

_GROUPS = 64


@by_identity
@dataclass(frozen=True, eq=False)
class Scale:
    """A noise scale, with its interval.

    Attributes:
        value: noise / signal, a number of samples; NaN where there is none.
        low, high: its interval; ``high`` is infinite where the draws do not tell the signal from zero.
        noise: tr(A Sigma), without bias.
        signal: G'AG, without bias: it may come out negative where it is not told from zero.
        status: "resolved"; "unresolved", where only ``low`` is known, or nothing; "none", where the signal or
            the noise is negative for certain: along G, or in the mean over the noise, the loss curves down.
    """

    value: float
    low: float
    high: float
    noise: float
    signal: float
    status: str

    @property
    def resolved(self) -> bool:
        """Whether the interval is bounded."""
        return self.status == "resolved"

    def __str__(self) -> str:
        if self.status == "none":
            return "no scale: the loss curves down"
        if self.resolved:
            return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"
        return "unresolved" + (f", {self.low:.3g} or more" if self.low > 0 else "")


@by_identity
@dataclass(frozen=True, eq=False)
class NoiseScales:
    """The two noise scales of a loss at the parameters where it is; print it, or ``.plot()`` it.

    Attributes:
        simple: B_simple = tr(Sigma) / |G|^2 (McCandlish, Kaplan, Amodei et al. 2018, arXiv:1812.06162, sec. 2.2).
        curved: B_noise = tr(H Sigma) / (G'HG), which that paper reduces to the first where H is
            a multiple of the identity.
        best_lr: eta_max = |G|^2 / (G'HG), the step that lowers the quadratic model most without noise; NaN
            where G'HG is not told from zero, or negative.
        draws: samples that the gradients are of.
        groups: into which they were put.
        confidence: level of the intervals.
    """

    simple: Scale
    curved: Scale
    best_lr: float
    draws: int
    groups: int
    confidence: float

    def lr(self, batch_size: int) -> float:
        """The step that lowers the quadratic model most at a batch size: eta_max / (1 + B_noise / B).

        NaN where B_noise is not resolved.

        Raises:
            InvalidType, InvalidValue: no batch size.
        """
        check_integer(1, batch_size=batch_size)
        return self.best_lr / (1 + self.curved.value / batch_size)

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        level = f"at {100 * self.confidence:g} %"
        known = self.curved if self.curved.resolved else self.simple
        name = "B_noise" if known is self.curved else "B_simple"
        if known.resolved:
            aside = "" if known is self.curved else f" (B_noise: {self.curved})"
            return (
                f"{name} = {known.value:.3g}, between {known.low:.3g} and {known.high:.3g} {level}: batches far below "
                f"it save samples, batches far above it save no steps{aside}"
            )
        least = [f"{n} is {s.low:.3g} or more" for n, s in self._named() if s.status == "unresolved" and s.low > 0]
        if not least:
            return f"no noise scale: B_simple {self.simple}; B_noise {self.curved}"
        return f"unresolved by {self.draws} draws: {', '.join(least)} {level}; take more draws"

    def _named(self) -> list[tuple[str, Scale]]:
        return [("B_simple", self.simple), ("B_noise", self.curved)]

    def __str__(self) -> str:
        lines = [f"{name} = tr{of} = {scale}" for (name, scale), of in zip(self._named(), _FORMULAS, strict=True)]
        return "\n".join([self.verdict, *lines, f"{self.draws} draws in {self.groups} groups"])

    def plot(self) -> Any:
        """What a batch buys by either scale, with intervals: the best step at each batch size.

        In a share of the best step without noise, 1 / (1 + scale / B); a dashed line is an upper bound, where of the
        scale only a lower one is known.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        level = f"{100 * self.confidence:g} % intervals, {self.draws} draws"
        return draw_scales(dict(self._named()), f"What a batch buys ({level})")


_FORMULAS = ("(Sigma) / |G|^2", "(H Sigma) / (G'HG)")


def noise_scale(
    net: nn.Module | Problem[Any],
    loss: Any,
    data: Any,
    *,
    draws: int | None = None,
    groups: int = _GROUPS,
    hessian_samples: int | None = None,
    confidence: float = 0.95,
    batch_size: int | None = None,
    seed: int = 0,
) -> NoiseScales:
    """The noise scales B_simple and B_noise of a loss, each with its interval.

    The data are taken for independent draws from a population: G and Sigma are the population's, of one sample, and no
    bias of order tr(Sigma) / draws is left in |G|^2, nor in G'HG. No gradient of a single sample is formed: all comes
    from the products between the mean gradients of groups (see ``ratio``), so that it costs one gradient of the data,
    and ``groups`` products and six with H, the Hessian on the data.

    Where B is a few times the number of draws, the signal is not told from zero; the scale is then said to be
    unresolved, and only what it is at least.

    Args:
        net: any module that treats the samples of a batch one by one, or a ``Problem`` whose particles do not interact.
        loss: ``loss(output, target)``, of torch or returning one number for each sample, or their mean. Of a problem
            its controls, or what has them, as an iterate has; its initial guess when None.
        data: what ``mfoc.population`` takes, all of it: a pair (x, y), a Dataset, particles.
        draws: that many of the samples at random; all of them when None.
        groups: of equal size (a rest of the draws is left out); fewer where there are fewer draws. Of less than some
            thirty, intervals hold a little less often than they say.
        hessian_samples: so many of the draws define H, as many in each group, and one at least; all when None.
            Intervals allow for what H is off by; less so where only few of these samples have any curvature.
        confidence: level of each interval.
        batch_size: samples that are differentiated at once.
        seed: of the order in which the draws are put into groups.

    Raises:
        InvalidType: no module or problem, no loss, no data.
        InvalidValue: fewer than eight draws; what ``gradient_noise`` refuses.
    """
    check_integer(8, groups=groups)
    check_integer(1, optional=True, hessian_samples=hessian_samples)
    check_between(0, 1, confidence=confidence)
    samples = Samples.of(net, loss, data, batch_size=batch_size, draws=draws, seed=seed)
    if len(samples) < 8:
        raise InvalidValue(f"there are {len(samples)} draws; an interval needs eight or more")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed), device="cpu")
    groups = min(groups, len(samples))
    members = len(samples) // groups
    cloud = samples.cloud[order.to(samples.device)]
    parts = [cloud[first : first + members] for first in range(0, groups * members, members)]
    means = torch.stack([samples.gradient(part) for part in parts])
    if not bool(means.isfinite().all()):
        raise InvalidValue("the gradient is not finite on some of the samples; look for samples of infinite loss")
    kept = members if hessian_samples is None else max(1, min(members, hessian_samples // groups))
    curved, bend = curved_products(samples, means, [part[:kept] for part in parts], members, seed)
    simple = _scale(means @ means.mT, members, confidence)
    bent = _scale(curved, members, confidence, bend)
    best = simple.signal / bent.signal if bent.resolved else math.nan
    return NoiseScales(simple, bent, best, groups * members, groups, confidence)


def _scale(products: Tensor, members: int, confidence: float, bend: Tensor | None = None) -> Scale:
    """The scale, from the interval of its inverse."""
    found = signal_to_noise(products, members, confidence, bend)
    rounding = 1e2 * torch.finfo(torch.float64).eps * members * float(products.abs().max())
    if abs(found.noise) <= rounding and found.signal > 0:  # samples that are all alike
        return Scale(0.0, 0.0, 0.0, 0.0, found.signal, "resolved")
    low, high = found.low, found.high
    if found.negative or high <= 0:
        return Scale(math.nan, math.nan, math.nan, found.noise, found.signal, "none")
    if math.isinf(low):
        return Scale(math.nan, 0.0, math.inf, found.noise, found.signal, "unresolved")
    value = found.noise / found.signal if found.signal > 0 else math.nan
    if low > 0:
        return Scale(value, 1 / high, 1 / low, found.noise, found.signal, "resolved")
    return Scale(value, 1 / high, math.inf, found.noise, found.signal, "unresolved")


class NoiseScale:
    """Noise scales along a training: a hook for ``mfoc.solve``, and for a training loop of your own.

    ``solve(problem, ..., hooks=[NoiseScale(problem, data=population, every=100)])``; or, in a loop with an optimiser,
    ``scale = NoiseScale(net, loss, data)`` and now and then ``scale.measure(step)``.

    Args:
        net: as for ``noise_scale``; a module is looked at as it is at the time.
        loss: the loss; None with a problem, whose controls come with the iterate.
        data: as for ``noise_scale``.
        every: steps between measurements.
        **settings: of ``noise_scale``: ``draws``, ``groups``, ``seed`` and so on.

    Attributes:
        steps: the steps at which it was measured.
        values: what was found there.

    Raises:
        InvalidType, InvalidValue: no data, unknown settings, no number of steps, a loss beside a problem.
    """

    def __init__(
        self, net: nn.Module | Problem[Any], loss: Any = None, data: Any = None, *, every: int = 100, **settings: Any
    ) -> None:
        check_integer(1, every=every)
        check_instance(nn.Module | Problem, "a torch.nn.Module or an mfoc.Problem", net=net)
        if isinstance(net, Problem) == (loss is not None):
            raise InvalidValue(
                "a module needs a loss; a Problem has costs of its own, and its controls come with the iterate: "
                "NoiseScale(problem, data=population)"
            )
        if data is None:
            raise InvalidValue("data is missing; give what mfoc.population takes")
        known = [name for name in inspect.signature(noise_scale).parameters if name not in ("net", "loss", "data")]
        for name in settings:
            if name not in known:
                raise InvalidType(f"{name} is no setting of noise_scale; expected one of {', '.join(known)}")
        self._net, self._loss, self._data, self._every, self._settings = net, loss, data, every, settings
        self.steps: list[int] = []
        self.values: list[NoiseScales] = []

    def __repr__(self) -> str:
        last = f", last at step {self.steps[-1]}: {self.values[-1].verdict}" if self.steps else ""
        return f"NoiseScale(every {self._every} steps, measured {len(self.steps)} times{last})"

    def start(self, steps: int) -> None:
        """Begins anew."""
        self.steps, self.values = [], []

    def __call__(self, iterate: Any) -> None:
        """Measures, when it is time.

        Raises:
            InvalidValue: it was made for a module, which ``mfoc.solve`` leaves as it is.
        """
        if not isinstance(self._net, Problem):
            raise InvalidValue(
                "mfoc.solve trains the controls of its problem and leaves the module as it is: make the hook of the "
                "problem, NoiseScale(problem, data=population); or call measure(step) in a loop of your own"
            )
        if iterate.step % self._every == 0:
            self.measure(iterate.step, iterate)

    def measure(self, step: int, controls: Any = None) -> NoiseScales:
        """Measures now.

        Args:
            step: what to call it.
            controls: of a problem, or what has them; its initial guess when None.
        """
        where = controls if isinstance(self._net, Problem) else self._loss
        found = noise_scale(self._net, where, self._data, **self._settings)
        self.steps.append(step)
        self.values.append(found)
        return found

    def plot(self) -> Any:
        """Both scales along the training, a ``matplotlib.figure.Figure``; hollow: an unresolved one is that or more."""
        figure, (axis,) = new_axes(6.4, 4.0)
        axis.set(xlabel="step", ylabel="samples", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        for name, color, marker, scales in (
            ("B_simple", COLORS[0], "o", [value.simple for value in self.values]),
            ("B_noise", COLORS[1], "s", [value.curved for value in self.values]),
        ):
            value, low, high = (
                [getattr(scale, field) if scale.resolved else math.nan for scale in scales]
                for field in ("value", "low", "high")
            )
            axis.plot(self.steps, value, color=color, marker=marker, label=name)
            axis.vlines(self.steps, low, high, color=color, alpha=0.3, linewidth=4)
            least = [s.low if s.status == "unresolved" and s.low > 0 else math.nan for s in scales]
            if any(low == low for low in least):
                axis.plot(self.steps, least, "^", color=color, fillstyle="none", markersize=9, label=f"{name} or more")
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")
        return figure

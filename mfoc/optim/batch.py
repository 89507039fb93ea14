"""Batches that grow with the noise scale of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch

from mfoc.analysis.noise.scales import NoiseScales, noise_scale
from mfoc.checks import (
    check_callable,
    check_flag,
    check_instance,
    check_integer,
    check_positive,
    check_signature,
    kind_of,
)
from mfoc.distributed import expectation, share
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, new_axes
from mfoc.optim.orders import Orders
from mfoc.particles import Particles
from mfoc.populations import Population, population, shuffled
from mfoc.problem import Controls, Problem
from mfoc.seeding import mixed_seed
from mfoc.solving import Iterate

_LEAST = 8  # particles of which ``noise_scale`` can say anything
Scale = Callable[[Problem, Controls, Particles], NoiseScales | float | None]


@dataclass(frozen=True)
class Measurement:
    """What was found when the noise scale was measured.

    Attributes:
        step: the step from which it counts.
        scale: B_noise, or what it is at least where it was not resolved; None where nothing is known.
        simple: B_simple = tr(Sigma) / |G|^2 likewise, which decides nothing.
        batch_size: of the batches from that step on.
    """

    step: int
    scale: float | None
    simple: float | None
    batch_size: int


class AdaptiveBatch(Population):
    """A population whose batches grow with the noise scale B_noise = tr(H Sigma) / (G' H G).

    G and H are gradient and Hessian of J, Sigma is the covariance of the gradient of one particle. The best rate of SGD
    with batches of B is eta_max / (1 + B_noise / B) (McCandlish et al. 2018, arXiv:1812.06162, sec. 2.2): far below the
    noise scale, a larger batch allows a rate that is larger in proportion; far above, it buys nothing. As a solve comes
    closer to a minimum G shrinks and the scale grows. Batches of ``ratio`` times the scale keep the best rate where it
    is, at eta_max / (1 + 1 / ratio): they take the place of a rate that falls.

        batches = AdaptiveBatch((x, y), problem, batch_size=32, every=100)
        mfoc.solve(problem, solver, batches, steps=2000, hooks=[batches.measure])

    The size of the batches from step k on is decided after step k, for k = every, 2 every, ...: at most doubled (all
    particles are what follows on half of them), and never made smaller, since the scale of a solve that converges
    grows, and an estimate that is by chance too small should not undo it. Where the draws do not resolve the scale,
    what it is at least counts; where that is nothing, or the loss curves down along G and there is none, the size
    stays.

    Given what was measured, the batch of a step is a function of the step alone. So the measurements are part of a run:
    save ``state_dict()`` before each checkpoint (a hook placed between ``measure`` and ``Checkpoint`` can), and
    ``load_state_dict()`` it before resuming. A step whose batch hangs on a measurement that is not there is refused.
    A second solve with the same object sees the batches of the first: make a new one to measure anew.

    A batch is at most half of the particles, or all of them. Every particle is seen equally often, up to one.

    Attributes:
        size: number of particles.
        batch_size: particles in a batch, as of the last measurement.
        measurements: what was measured, in order; ``.plot()`` draws them.
    """

    size: int
    batch_size: int

    def __init__(
        self,
        source: Any,
        problem: Problem,
        *,
        batch_size: int,
        most: int | None = None,
        every: int = 100,
        ratio: float = 1.0,
        draws: int = 1000,
        scale: Scale = noise_scale,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        """Makes the population.

        Args:
            source: what ``mfoc.population`` takes, but for a function. Of a population the data are used, not the
                batches.
            problem: the problem that is solved.
            batch_size: particles in a batch at the start, at most half of them.
            most: the largest batch; None for all of the particles.
            every: steps between measurements.
            ratio: batch size as a multiple of the noise scale.
            draws: particles that a measurement looks at, drawn anew for each; all of them where they are fewer.
            scale: ``scale(problem, controls, particles)``, the noise scale: what ``mfoc.analysis.noise.noise_scale``
                returns, as with ``functools.partial(noise_scale, groups=128)``, or a number, None where it cannot tell.
            shuffle: a new order each epoch.
            seed: a non-negative integer.

        Raises:
            InvalidType: a source that has no particles to be taken by number, or no problem.
            InvalidValue: sizes that do not fit, or a problem whose J depends on the size of the batches.
        """
        check_instance(Problem, "mfoc.Problem", problem=problem)
        if problem.interacting is not None:
            raise InvalidValue(
                f"the problem's particles interact within a batch (interacting={problem.interacting!r}): its J changes "
                "with the size of the batches; use mfoc.population(source, batch_size=...)"
            )
        check_integer(1, batch_size=batch_size, every=every)
        check_integer(_LEAST, draws=draws)
        check_integer(batch_size, most=most, optional=True)
        check_positive(ratio=ratio)
        check_integer(0, seed=seed)
        check_flag(shuffle=shuffle)
        check_callable("a function of (problem, controls, particles)", scale=scale)
        check_signature(("problem", "controls", "particles"), scale=scale)
        self._source = population(source)
        if self._source.size is None:
            raise InvalidType("source draws its particles on demand, in batches of its own; expected data")
        self.size = self._source.size
        if self.size < _LEAST:
            raise InvalidValue(f"there are {self.size} particles; a measurement needs {_LEAST} or more")
        if batch_size > self.size // 2:
            raise InvalidValue(
                f"batch_size is {batch_size} of {self.size} particles; expected at most half of them to grow from, "
                f"{self.size // 2}"
            )
        self._problem, self._scale, self._ratio = problem, scale, ratio
        self._most, self._draws = self.size if most is None else min(most, self.size), min(draws, self.size)
        self._settings = {"batch_size": batch_size, "every": every, "seed": seed, "shuffle": shuffle, "size": self.size}
        self._every, self._seed, self._shuffle, self._first = every, seed, shuffle, batch_size
        self._follow([])

    @property
    def runs_user_code(self) -> bool:
        """See ``Population``."""
        return self._source.runs_user_code

    def described(self) -> dict[str, Any]:
        """See ``Population``; the batch size is that of the start, as later ones are measured."""
        return {"kind": "AdaptiveBatch", **self._settings}

    def __call__(self, step: int) -> Particles:
        """This rank's share of the batch of step ``step``.

        Raises:
            InvalidValue: its size hangs on a measurement that has not been made.
        """
        check_integer(0, step=step)
        if step >= self._known:
            raise InvalidValue(
                f"the size of the batch of step {step} hangs on the noise scale at step {self._due(step)}, which this "
                f"population has not seen (its last: {self._known - self._every}). In a solve, give it as a hook: "
                "hooks=[batches.measure]. To resume one, first load_state_dict(...) what state_dict() was at that step"
                + "; measure(iterate) makes up for it with the iterate of that step"
                * (step == self._known)
            )
        return self._source.fetch(share(self._places(step)), mixed_seed(self._seed, step, 1))

    def measure(self, iterate: Iterate) -> None:
        """A hook for ``mfoc.solve``: measures the noise scale, when it is time, and sets the size of what follows.

        All ranks look at the same particles, and take the mean of what they found.

        Raises:
            InvalidValue: measurements before this one are missing.
        """
        check_instance(Iterate, "an mfoc.Iterate", iterate=iterate)
        if iterate.step % self._every or iterate.step < self._known:  # not due, or made already by what is resumed
            return
        if iterate.step > self._known:
            raise InvalidValue(
                f"the noise scale is to be measured at step {iterate.step}, and has not been at step {self._known}: "
                "load_state_dict(...) what state_dict() was when the run was saved"
            )
        drawn = shuffled(self.size, mixed_seed(self._seed, 3), iterate.step)[: self._draws]
        particles = self._source.fetch(drawn, mixed_seed(self._seed, iterate.step, 4))
        found = self._scale(self._problem, iterate.controls, particles)
        device = particles.indices().device
        numbers = torch.tensor(_known(found), dtype=torch.float64, device=device)
        agreed = expectation([numbers], 1)[0].tolist()
        self._grow(iterate.step, *[None if math.isnan(number) else number for number in agreed])

    def epoch(self) -> Iterator[Particles]:
        """Every particle once, in the order of the source; the same on all ranks."""
        for part, index in enumerate(torch.split(torch.arange(self.size, device="cpu"), self._first)):
            yield self._source.fetch(index, mixed_seed(self._seed, part, 2))

    @property
    def schedule(self) -> list[tuple[int, int]]:
        """(step, batch size) wherever the size changed, from step 0 on."""
        found = [(0, self._first)]
        for row in self.measurements:
            if row.batch_size != found[-1][1]:
                found.append((row.step, row.batch_size))
        return found

    def plot(self) -> Any:
        """The batch size by step, and the noise scale that was measured: a ``matplotlib.figure.Figure``.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        figure, (axis,) = new_axes(6.4, 4.0)
        steps = [0, *(row.step for row in self.measurements)]
        sizes = [self._first, *(row.batch_size for row in self.measurements)]
        end = steps[-1] + self._every  # what is known of
        axis.plot([*steps, end], [*sizes, sizes[-1]], drawstyle="steps-post", color=COLORS[0], label="batch size")
        for name, color, marker in (("scale", COLORS[1], "o"), ("simple", COLORS[2], "^")):
            found = [(row.step, getattr(row, name)) for row in self.measurements]
            known = [(step, scale) for step, scale in found if scale is not None and scale > 0]
            if known:
                label = {"scale": "noise scale B_noise, or at least", "simple": "B_simple, or at least"}[name]
                axis.plot(*zip(*known, strict=True), color=color, marker=marker, linestyle="", label=label)
        axis.set(xlabel="step", ylabel="samples", yscale="log")
        axis.set_title(f"Batches of {self.size} particles", fontsize=10, loc="left")
        axis.legend(frameon=False, fontsize=9)
        return figure

    def state_dict(self) -> dict[str, Any]:
        """The measurements, and the settings that they belong to: plain values."""
        return {**self._settings, "measurements": [list(astuple(row)) for row in self.measurements]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over the measurements of a run that is resumed.

        Raises:
            InvalidValue: they are those of a population with other settings, or no measurements.
        """
        check_instance(Mapping, "what state_dict() returned", state_dict=state_dict)
        if state_dict.keys() != self._settings.keys() | {"measurements"}:
            raise InvalidValue(
                f"state_dict holds {sorted(state_dict)}; expected what AdaptiveBatch.state_dict() returned"
            )
        for name, own in self._settings.items():
            if state_dict[name] != own:
                raise InvalidValue(
                    f"state_dict is of a run with {name}={state_dict[name]!r}; this population has {own!r}"
                )
        try:
            found = [Measurement(*row) for row in state_dict["measurements"]]
            sizes = [self._first, *(row.batch_size for row in found)]
            in_order = [row.step for row in found] == [self._every * (k + 1) for k in range(len(found))]
            possible = sizes == sorted(sizes) and all(b <= self.size // 2 or b == self.size for b in sizes)
        except TypeError as error:
            raise InvalidValue(f"state_dict holds no rows of step, scales and batch size: {error}") from error
        if not in_order or not possible:
            raise InvalidValue("state_dict holds measurements that no run can have made: it is damaged")
        self._follow(found)

    def _follow(self, measurements: list[Measurement]) -> None:
        self.measurements = measurements
        self._places = Orders(self.size, self.schedule, shuffle=self._shuffle, seed=self._seed)
        self._resize(self.schedule[-1][1])

    def _grow(self, step: int, scale: float | None, simple: float | None) -> None:
        batch = self._size_for(scale)
        self.measurements.append(Measurement(step, scale, simple, batch))
        if batch != self.batch_size:
            self._places.change(step, batch)
        self._resize(batch)

    def _resize(self, batch: int) -> None:
        self.batch_size, self.batches_per_epoch = batch, -(-self.size // batch)
        self._known = self._every * (len(self.measurements) + 1)

    def _size_for(self, scale: float | None) -> int:
        if scale is None or scale <= 0:
            return self.batch_size
        wanted = min(self._ratio * scale, 2 * self.batch_size, self._most)
        batch = max(math.ceil(wanted), self.batch_size)
        if batch <= self.size // 2:
            return batch
        return self.size if self._most == self.size else max(self.size // 2, self.batch_size)

    def _due(self, step: int) -> int:
        return step - step % self._every


def _known(found: NoiseScales | float | None) -> list[float]:
    """B_noise and B_simple, or what they are at least, with NaN for what is not known."""
    if isinstance(found, NoiseScales):
        scales = [found.curved, found.simple]
        return [s.value if s.resolved else s.low if s.low > 0 else math.nan for s in scales]
    try:
        return [math.nan if found is None else float(found), math.nan]
    except (TypeError, ValueError) as error:
        raise InvalidType(f"scale(...) returned {kind_of(found)}; expected NoiseScales, a number or None") from error

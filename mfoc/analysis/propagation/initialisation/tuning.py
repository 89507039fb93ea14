"""Jacobian tuning: the gain of every block of any network is brought to one, in the order of the run.

Source: He, Doshi & Gromov 2022, "AutoInit: automatic initialization via Jacobian tuning", section 2: the gain of every
layer is tuned until the partial Jacobian norm is one. Here a root is found block after block instead of by descent on
all, products are random, and the length map is watched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.analysis.propagation.initialisation.drafts import Draft
from mfoc.analysis.propagation.initialisation.fresh_weights import biases, weights
from mfoc.analysis.propagation.initialisation.segments import Segment, own
from mfoc.analysis.propagation.initialisation.streams import Pass, Reading, read, run

TOLERANCE = 0.01
BAND = 3.0  # q stays within [q*/3, 3 q*] where gains can be chosen so
_HALVINGS = 7
STEER = 0.02
_ROWS = 60_000  # numbers in all probes of a block: the gain is then known to about one part in a hundred


@dataclass(frozen=True, eq=False)
class Tuned:
    """A block after tuning.

    Attributes:
        segment: the block.
        reading: what it is then.
        note: what was done, or could not be had.
        judged: whether its gain was to be one.
        scale: by how much its weights differ from those of a layer whose gain is one by itself.
    """

    segment: Segment
    reading: Reading
    note: str = ""
    judged: bool = True
    scale: float = 1.0


@dataclass(eq=False)
class Tuner:
    """Tunes the blocks of a draft on an input.

    Attributes:
        draft: the network's new weights.
        args: the input.
        seed: of the probes.
        orthogonal: whether the layers of chains get orthogonal weights.
        generator: what new weights are drawn from.
        steer: how far the gain of a layer may be off one to lead the length back to q*.
    """

    draft: Draft
    args: Sequence[Any]
    seed: int
    orthogonal: bool
    generator: torch.Generator
    steer: float = STEER

    def reading(self, block: Segment) -> Reading:
        """What the block is now."""
        return self.read(run(self.draft, self.args, last=block.end), block)

    def read(self, found: Pass, block: Segment) -> Reading:
        """What the block was in a pass."""
        value = found.events[block.end].value
        assert value is not None
        return read(found, block.start, block.end, seed=self.seed, probes=max(2, min(48, _ROWS // value.numel())))

    def stem(self, block: Segment, q_star: float | None) -> Tuned:
        """The first layer, which sees the data: scaled so that q_star comes out where it has no norm after it."""
        if q_star is None or block.plain is None or not block.plain.weight.requires_grad:
            return Tuned(block, self.reading(block), "sees the data: left as it is", judged=False)
        self._draw(block.plain, spread=True)
        size = self.reading(block).q
        self._scale([block.plain.weight], math.sqrt(q_star / size) if size > 0 else 1.0)
        return Tuned(block, self.reading(block), "sees the data: scaled to q*", judged=False)

    def layer(self, block: Segment, q_star: float) -> Tuned:
        """A dense or convolution layer of a chain: new weights with gain one, biases that make up for what q lacks."""
        module = block.plain
        if not module.weight.requires_grad:
            return Tuned(block, self.reading(block), "weights frozen")
        self._draw(module, spread=False)
        now = self.reading(block)
        if not (math.isfinite(now.chi) and now.chi > 0):
            return Tuned(block, now, "no signal passes")
        free = module.bias is not None and module.bias.requires_grad
        # Without biases the layer is linear in its weights: what comes of another scale needs no other pass.
        gain = steered(now.q / now.chi, q_star, self.steer)
        q = now.q / now.chi * gain
        scale = (gain / now.chi) ** 0.5
        self._scale([module.weight], scale)
        if free and q < q_star:
            self.draft[module.bias] = biases(module, q_star - q, generator=self.generator)
            q = q_star
        return Tuned(block, Reading(q, gain, now.chi_q), scale=scale)

    def knot(self, block: Segment, length: float | None) -> Tuned:
        """Any other block: its weights are multiplied by one number, then its norms' gains where that is not enough."""
        before = self.reading(block)
        q_star = before.q if length is None else length
        if abs(before.chi - 1) <= TOLERANCE:
            return Tuned(block, before)
        scale, after = self._search(_free(block.weights), block, before, lambda r: True)
        note = f"weights times {scale:.3g}" if scale != 1 else ""
        if abs(after.chi - 1) > TOLERANCE and (gains := _free(block.norms)):
            fits = lambda r: q_star / BAND <= r.q <= BAND * q_star or abs(math.log(r.q / after.q)) < 1e-3  # noqa: E731
            factor, after = self._search(gains, block, after, fits)
            note += f"{'; ' * bool(note)}gains of norms times {factor:.3g}" if factor != 1 else ""
        return Tuned(block, after, note)

    def _search(
        self, parameters: list[nn.Parameter], block: Segment, now: Reading, fits: Callable[[Reading], bool]
    ) -> tuple[float, Reading]:
        """The number nearest to one by which to multiply, so that chi is one; else the chi that is nearest to one."""
        base = [self.draft[parameter].clone() for parameter in parameters]
        tried = {1.0: now}

        def off(scale: float) -> float:
            if scale not in tried:
                self._set(parameters, base, scale)
                tried[scale] = self.reading(block)
            chi = tried[scale].chi
            return math.log(chi) if math.isfinite(chi) and chi > 0 else math.inf

        if parameters:
            for ladder in self._ladders(block, off, now):
                low = 1.0
                for high in ladder:
                    if off(high) * off(low) < 0:
                        self._bisect(off, low, high)
                        break
                    if abs(off(high)) <= TOLERANCE:
                        break
                    low = high
            root = min(tried, key=lambda scale: abs(off(scale)))
            if not fits(tried[root]):  # as far towards it as the length map lets
                for part in (0.75, 0.5, 0.25):
                    off(root**part)
        allowed = [scale for scale in tried if fits(tried[scale]) or scale == 1.0]
        nearest = min(abs(off(scale)) for scale in allowed)
        # Of those as good as the nearest, the one that changes least: a branch is not put out for a third digit.
        good = [scale for scale in allowed if abs(off(scale)) <= max(TOLERANCE, nearest + TOLERANCE / 2)]
        best = min(good, key=lambda scale: abs(math.log(scale)))
        self._set(parameters, base, best)
        return best, tried[best]

    def _ladders(self, block: Segment, off: Callable[[float], float], now: Reading) -> list[list[float]]:
        """Where to look: nowhere, where the scale has no say, as that of weights before a norm has none.

        What has a skip connection (something passes without its weights) is never made stronger than it was: with
        larger weights attention only saturates.
        """
        if abs(off(0.5) - off(1.0)) < TOLERANCE:
            return []
        down, up = [2.0**-k for k in range(1, 8)], [2.0**k for k in range(1, 6)]
        if block.knotted and off(down[-1]) > -1.0:
            return [down]
        return [down] if now.chi > 1 else [up]

    def _bisect(self, off: Callable[[float], float], low: float, high: float) -> None:
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            if abs(off(middle)) <= TOLERANCE / 2:
                return
            low, high = (middle, high) if off(middle) * off(low) > 0 else (low, middle)

    def _draw(self, module: Any, *, spread: bool) -> None:
        self.draft[module.weight] = weights(
            module, 1.0, orthogonal=self.orthogonal, spread=spread, generator=self.generator
        )
        if module.bias is not None and module.bias.requires_grad:
            self.draft[module.bias] = torch.zeros_like(module.bias)

    def _scale(self, parameters: list[nn.Parameter], scale: float) -> None:
        self._set(parameters, [self.draft[parameter] for parameter in parameters], scale)

    def _set(self, parameters: list[nn.Parameter], base: list[Tensor], scale: float) -> None:
        for parameter, value in zip(parameters, base, strict=True):
            self.draft[parameter] = value * scale


def steered(q: float, q_star: float, most: float = STEER) -> float:
    """The gain, within ``most`` of one, that leads a length back to q_star over some layers.

    In narrow layers the mean of phi'^2 is off what theory says, and lengths take a random walk at chi = 1.
    """
    return min(max((q_star / q) ** 0.25, 1 - most), 1 + most) if q > 0 else 1.0


def _free(modules: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    """The parameters of some layers that may change, each once."""
    found = dict.fromkeys(parameter for module in modules for parameter in own(module))
    return [parameter for parameter in found if parameter.requires_grad]

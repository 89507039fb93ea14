"""Whether SGD is what its stochastic differential equation says: SVAG, which approaches the equation, beside it.

Where SGD follows its equation, l makes no difference (see ``svag``): its mean loss lies within a margin of that at
every l. As many trainings diverge, too, but for chance (Fisher's exact test, 1922).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.analysis.noise.svag import Train, batch_size_of, svag_training
from mfoc.checks import (
    check_between,
    check_callable,
    check_instance,
    check_integer,
    check_positive,
    check_signature,
    kind_of,
)
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import new_axes, style
from mfoc.printing import by_identity
from mfoc.problem import Problem
from mfoc.statistics import student_t_quantile

_SEEDS = 16


@by_identity
@dataclass(frozen=True, eq=False)
class ValidSDE:
    """SGD beside SVAG, whose limit is the equation.

    Attributes:
        l: 1, which is SGD, and what it is compared with.
        losses: for each l those of every seed at the places compared ``[S, K]``.
        gaps: the mean loss of SGD over that at l, less one ``[L - 1, K]``.
        low, high: their intervals, which hold all together at the level of confidence (Welch, Bonferroni).
        margin: the gap up to which the two are said to agree.
        confidence: level of all intervals together.
        lr: the step of SGD; None where the training is the user's own.
        batch_size: samples in a batch of SGD; None likewise.
    """

    l: tuple[int, ...]  # noqa: E741 - the paper's name
    losses: tuple[Tensor, ...]
    gaps: Tensor
    low: Tensor
    high: Tensor
    margin: float
    confidence: float
    lr: float | None = None
    batch_size: int | None = None

    @property
    def diverged(self) -> tuple[int, ...]:
        """For each l, how many seeds have a loss that is not finite somewhere."""
        return tuple(int((~each.isfinite().all(1)).sum()) for each in self.losses)

    @property
    def standing(self) -> str:
        """One of "valid", "not valid" and "cannot tell"."""
        if any(self.diverged):
            return "not valid" if self._diverges_otherwise() else "cannot tell"
        if bool(((self.low > self.margin) | (self.high < -self.margin)).any()):
            return "not valid"
        return "valid" if bool(((self.low >= -self.margin) & (self.high <= self.margin)).all()) else "cannot tell"

    def _diverges_otherwise(self) -> bool:
        """Whether more trainings diverge at l = 1 than at another, or fewer, and not by chance."""
        (one, *others), (first, *rest) = self.diverged, (len(each) for each in self.losses)
        chance = min(_fisher(one, first, other, size) for other, size in zip(others, rest, strict=True))
        return chance * len(others) <= 1 - self.confidence

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        at = "SGD" if self.lr is None else f"SGD at lr = {self.lr:.3g} and batches of {self.batch_size}"
        level = f"at {100 * self.confidence:g} % confidence"
        others = ", ".join(map(str, self.l[1:]))
        if any(self.diverged):
            shares = [f"{n} of {len(each)}" for n, each in zip(self.diverged, self.losses, strict=True)]
            seen = f"{shares[0]} trainings diverge, by SVAG at l = {others} {', '.join(shares[1:])}"
            if self.standing == "not valid":
                return f"{at} is not what its SDE says: {seen}, {level}"
            return f"cannot tell: of {at} {seen}; take a smaller step, or more seeds"
        if self.standing == "valid":
            return f"{at} is what its SDE says, within {100 * self.margin:g} % of the loss at l = {others}, {level}"
        size = torch.minimum(self.low.abs(), self.high.abs()) * (self.low * self.high > 0)
        row, column = divmod(int(size.argmax()), self.gaps.shape[1])
        low, high = (100 * float(each[row, column]) for each in (self.low, self.high))
        gap = f"its loss is {low:+.3g} to {high:+.3g} % off that at l = {self.l[1 + row]}, {level}"
        if self.standing == "not valid":
            return f"{at} is not what its SDE says: {gap}"
        width = 100 * float((self.high - self.low).max())
        wide = f"up to {width:.3g} % wide" if math.isfinite(width) else "unbounded, as the mean is not told from zero"
        return (
            f"cannot tell within {100 * self.margin:g} %: the intervals of {at} against l = {others} are "
            f"{wide}, {level}; take more seeds than {len(self.losses[0])}"
        )

    def __str__(self) -> str:
        lines = [self.verdict]
        for k, each in zip(self.l, self.losses, strict=True):
            last = each[:, -1]
            lines.append(f"l = {k}: loss {float(last.mean()):.4g} +- {float(last.std()):.2g} over {len(last)} seeds")
        return "\n".join(lines)

    def plot(self) -> Any:
        """The losses of all seeds for each l, a ``matplotlib.figure.Figure``."""
        figure, (axis,) = new_axes(6.4, 4.0)
        axis.set(xlabel="l of SVAG (1 is SGD)", ylabel="loss at the end")
        axis.set_xticks(range(len(self.l)), list(map(str, self.l)))
        for k, each in enumerate(self.losses):
            last = each[:, -1].double()
            names = ("", "") if k else ("each seed", "their mean")
            axis.plot([k] * len(last), last.tolist(), ".", color=style(0)["color"], alpha=0.4, label=names[0])
            mean = float(last[last.isfinite()].mean())  # of those that did not diverge
            axis.plot([k], [mean], "D", color=style(1)["color"], label=names[1])
        first = float(self.losses[0][:, -1].mean())
        if math.isfinite(first) and self.margin < 1:
            ends = first / (1 + self.margin), first / (1 - self.margin)
            axis.axhspan(*ends, color="0.9", zorder=0, label="means that agree with SGD's")
        lost = f"; {sum(self.diverged)} trainings diverged" if any(self.diverged) else ""
        axis.set_title(f"{self.standing}{lost}", fontsize=10)
        axis.legend(frameon=False, fontsize=9)
        return figure


def valid_sde(
    net: nn.Module | Problem[Any] | Train,
    loss: Any = None,
    data: Any = None,
    *,
    lr: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    l: Sequence[int] = (1, 2, 4),  # noqa: E741
    seeds: int = _SEEDS,
    margin: float = 0.1,
    confidence: float = 0.95,
    points: int = 1,
    seed: int = 0,
) -> ValidSDE:
    """Whether SGD and SVAG train alike, as they do where SGD follows its stochastic differential equation.

    ``valid_sde(net, loss, data, lr=0.1, steps=500)`` trains copies of a network itself, by plain SGD on batches drawn
    with replacement, as the equation has it; nothing of the network changes. ``valid_sde(train)`` asks a training
    function of your own, in which ``svag_weights`` help.

    Args:
        net: where training starts: any module that treats the samples of a batch one by one, or a ``Problem``. Or
            ``train(l)``, which trains by SVAG, with l times as many steps of lr / l, and returns the losses of
            independent seeds at the end ``[S]``, or at the same times for every l ``[S, K]``; infinite or NaN of those
            that diverged. It brings a loss, data and settings of its own: only ``l``, ``margin`` and ``confidence`` go
            with it.
        loss: as for ``gradient_noise``.
        data: as for ``gradient_noise``; the losses that are compared are the mean over all of them.
        lr: the step of SGD.
        steps: how many SGD takes; SVAG takes l times as many.
        batch_size: samples in a batch; when None that of a DataLoader or ``mfoc.population``, or 32.
        l: 1 and what it is compared with.
        seeds: trainings for each l.
        margin: the relative gap between mean losses up to which they are said to agree.
        confidence: of the verdict, all comparisons together.
        points: places, evenly along the training, at which losses are compared; 1 is its end.
        seed: of the batches.

    Raises:
        InvalidType: neither a network nor a function; no lr or steps; ``train`` returned no losses.
        InvalidValue: what ``gradient_noise`` refuses; no 1 among l, or nothing beside it; of a training function,
            settings that it does not take, fewer than two seeds, or other shapes for other l.
    """
    order = _order(l)
    check_positive(margin=margin)
    check_between(0, 1, confidence=confidence)
    if isinstance(net, nn.Module | Problem):
        size = batch_size_of(data) if batch_size is None else batch_size
        made = {"lr": lr, "steps": steps, "batch_size": size, "seeds": seeds, "points": points, "seed": seed}
        train = svag_training(net, loss, data, **made)  # type: ignore[arg-type]  # refused there, where None
        return replace(_compared(train, order, margin, confidence), lr=lr, batch_size=size)
    check_callable("a torch.nn.Module, an mfoc.Problem or a function train(l) -> losses [S]", net=net)
    check_signature(("l",), train=net)
    given = {"loss": loss, "data": data, "lr": lr, "steps": steps, "batch_size": batch_size}
    odd = [name for name, value in given.items() if value is not None]
    odd += [name for name, set_ in (("seeds", seeds != _SEEDS), ("points", points != 1), ("seed", seed != 0)) if set_]
    if odd:
        raise InvalidValue(f"{', '.join(odd)} would do nothing: train(l) has its own; leave out, or give a network")
    return _compared(net, order, margin, confidence)


def _order(l: Any) -> tuple[int, ...]:  # noqa: E741
    check_instance(Sequence, "a sequence of integers, (1, 2, 4)", l=l)
    for each in l:
        check_integer(1, l=each)
    order = tuple(sorted(set(l)))
    if order[:1] != (1,) or len(order) < 2:
        raise InvalidValue(f"l is {tuple(l)}; expected 1, which is SGD, and at least one above")
    return order


def _compared(train: Train, order: tuple[int, ...], margin: float, confidence: float) -> ValidSDE:
    losses = tuple(_checked(train(each), each) for each in order)
    if len({each.shape[1] for each in losses}) > 1:
        raise InvalidValue(f"train returned {[each.shape[1] for each in losses]} places; expected the same for every l")
    level = 1 - (1 - confidence) / ((len(order) - 1) * losses[0].shape[1])
    found = [_gap(losses[0], other, level) for other in losses[1:]]
    gaps, low, high = (torch.stack(part) for part in zip(*found, strict=True))
    return ValidSDE(order, losses, gaps, low, high, float(margin), float(confidence))


def _checked(found: Any, factor: int) -> Tensor:
    if not isinstance(found, Tensor):
        try:
            if isinstance(found, list | tuple) and found:  # a seed after the other, each a number or a tensor
                found = torch.stack([torch.as_tensor(row, dtype=torch.float64, device="cpu") for row in found])
            found = torch.as_tensor(found, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise InvalidType(f"train({factor}) returned {kind_of(found)}; expected losses [S] or [S, K]") from None
    if found.is_complex():
        raise InvalidType(f"train({factor}) returned {found.dtype}; expected losses, which are real numbers")
    if found.dim() not in (1, 2) or len(found) < 2 or not found.numel():
        raise InvalidValue(
            f"train({factor}) returned shape {tuple(found.shape)}; expected losses of two seeds or more, [S] or [S, K]"
        )
    losses: Tensor = found.detach().double().cpu()
    return losses.reshape(len(losses), -1)


def _gap(first: Tensor, other: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """mean(first) / mean(other) - 1 and its interval at each place ``[K]``, by Welch's approximation (1947)."""
    ratio = first.mean(0) / other.mean(0)
    parts = torch.stack([first.var(0) / len(first), ratio.square() * other.var(0) / len(other)])
    counts = torch.tensor([[len(first) - 1.0], [len(other) - 1.0]], dtype=torch.float64, device="cpu")
    total = parts.sum(0)
    freedom = (total.square() / (parts.square() / counts).sum(0)).nan_to_num(1.0, 1.0, 1.0)  # of no spread
    t = torch.tensor([student_t_quantile(level, max(1, int(f))) for f in freedom], dtype=torch.float64, device="cpu")
    half = t * total.sqrt() / other.mean(0).abs()
    known = t * (other.var(0) / len(other)).sqrt() < other.mean(0).abs()  # a ratio to what may be zero is none
    half = torch.where(known & ratio.isfinite(), half, math.inf)
    gap = ratio - 1
    return gap, gap - half, gap + half


def _fisher(one: int, first: int, other: int, second: int) -> float:
    """The chance that ``one`` of ``first`` and ``other`` of ``second`` differ so, twice the smaller tail."""
    total, all_ = one + other, math.comb(first + second, one + other)
    chances = [math.comb(first, k) * math.comb(second, total - k) / all_ for k in range(total + 1)]
    return 2 * min(sum(chances[: one + 1]), sum(chances[one:]))

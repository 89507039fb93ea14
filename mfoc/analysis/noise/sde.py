"""Whether SGD is what its stochastic differential equation says: SVAG, which approaches the equation, beside it.

Li, Malladi & Arora (2021), "On the validity of modeling SGD with stochastic differential equations (SDEs)",
arXiv:2102.12470, sec. 4: steps of size lr / l along gradients of c1 L1 + c2 L2, two independent batches, have the mean
of SGD's gradients and l times their covariance. With l times as many steps the equation stays the same for every l, and
is the limit l -> infinity; l = 1 is SGD. So where SGD follows its equation, l makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.analysis.noise.samples import Samples
from mfoc.checks import check_between, check_callable, check_instance, check_integer, check_positive, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import new_axes, style
from mfoc.printing import by_identity
from mfoc.problem import Problem
from mfoc.seeding import mixed_seed
from mfoc.statistics import student_t_quantile

Train = Callable[[int], Tensor]


def svag_weights(l: int) -> tuple[float, float]:  # noqa: E741 - the paper's name
    """The weights c1, c2 = (1 +- sqrt(2 l - 1)) / 2 of two independent batches in one step of SVAG.

    In a training loop of your own: losses ``c1 * loss(batch1) + c2 * loss(batch2)``, the learning rate divided by l,
    and l times as many steps. They sum to 1, and their squares to l.

    Raises:
        InvalidType, InvalidValue: l is no positive integer.
    """
    check_integer(1, l=l)
    root = math.sqrt(2 * l - 1)
    return (1 + root) / 2, (1 - root) / 2


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
    """

    l: tuple[int, ...]  # noqa: E741 - the paper's name
    losses: tuple[Tensor, ...]
    gaps: Tensor
    low: Tensor
    high: Tensor
    margin: float
    confidence: float
    lr: float | None = None

    @property
    def standing(self) -> str:
        """One of "valid", "not valid" and "cannot tell"."""
        finite = [bool(each.isfinite().all()) for each in self.losses]
        if not all(finite):
            return "not valid" if any(finite) else "cannot tell"
        if bool(((self.low > self.margin) | (self.high < -self.margin)).any()):
            return "not valid"
        return "valid" if bool(((self.low >= -self.margin) & (self.high <= self.margin)).all()) else "cannot tell"

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        at = "SGD" if self.lr is None else f"SGD at lr = {self.lr:.3g}"
        level = f"at {100 * self.confidence:g} % confidence"
        others = ", ".join(map(str, self.l[1:]))
        diverged = [k for k, each in zip(self.l, self.losses, strict=True) if not bool(each.isfinite().all())]
        if len(diverged) == len(self.l):
            return f"cannot tell: {at} diverges, and so does SVAG at l = {others}; take a smaller step"
        if diverged:
            return f"{at} is not what its SDE says: training diverges at l = {', '.join(map(str, diverged))} alone"
        if self.standing == "valid":
            return f"{at} is what its SDE says, within {100 * self.margin:g} % of the loss at l = {others}, {level}"
        size = torch.minimum(self.low.abs(), self.high.abs()) * (self.low * self.high > 0)
        row, column = divmod(int(size.argmax()), self.gaps.shape[1])
        low, high = (100 * float(each[row, column]) for each in (self.low, self.high))
        gap = f"its loss is {low:+.3g} to {high:+.3g} % off that at l = {self.l[1 + row]}, {level}"
        if self.standing == "not valid":
            return f"{at} is not what its SDE says: {gap}"
        return (
            f"cannot tell within {100 * self.margin:g} %: the intervals of {at} against l = {others} are up to "
            f"{100 * float((self.high - self.low).max()):.3g} % wide, {level}; take more seeds than "
            f"{len(self.losses[0])}"
        )

    def __str__(self) -> str:
        lines = [self.verdict]
        for k, each in zip(self.l, self.losses, strict=True):
            last = each[:, -1].double()
            lines.append(f"l = {k}: loss {float(last.mean()):.4g} +- {float(last.std()):.2g} over {len(last)} seeds")
        return "\n".join(lines)

    def plot(self) -> Any:
        """The losses of all seeds for each l, a ``matplotlib.figure.Figure``."""
        figure, (axis,) = new_axes(6.4, 4.0)
        axis.set(xlabel="l", ylabel="loss at the end")
        axis.set_xticks(range(len(self.l)), list(map(str, self.l)))
        for k, each in enumerate(self.losses):
            last = each[:, -1].double()
            axis.plot([k] * len(last), last.tolist(), ".", color=style(0)["color"], alpha=0.4)
            axis.plot([k], [float(last.mean())], "D", color=style(1)["color"])
        axis.set_title(self.standing, fontsize=10)
        return figure


def valid_sde(
    net: nn.Module | Problem[Any],
    loss: Any,
    data: Any,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    l: Sequence[int] = (1, 2, 4),  # noqa: E741
    seeds: int = 16,
    margin: float = 0.1,
    confidence: float = 0.95,
    points: int = 1,
    seed: int = 0,
) -> ValidSDE:
    """Trains a copy by SGD and by SVAG, and says whether the two agree, as they do where SGD follows its equation.

    Batches are drawn with replacement, as the equation has it. Nothing of the network changes.

    Args:
        net: where training starts: any module that treats the samples of a batch one by one, or a ``Problem``.
        loss: as for ``gradient_noise``.
        data: as for ``gradient_noise``; the losses that are compared are the mean over all of them.
        lr: the step of SGD.
        steps: how many SGD takes; SVAG takes l times as many.
        batch_size: samples in a batch.
        l: 1 and what it is compared with.
        seeds: trainings for each l.
        margin: the relative gap between mean losses up to which they are said to agree.
        confidence: of the verdict, all comparisons together.
        points: places, evenly along the training, at which losses are compared; 1 is its end.
        seed: of the batches.

    Raises:
        InvalidType, InvalidValue: what ``gradient_noise`` refuses; no step, no 1 among l.
    """
    train = svag_training(
        net, loss, data, lr=lr, steps=steps, batch_size=batch_size, seeds=seeds, points=points, seed=seed
    )
    return replace(compare_svag(train, l=l, margin=margin, confidence=confidence), lr=lr)


def svag_training(
    net: nn.Module | Problem[Any],
    loss: Any,
    data: Any,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    seeds: int = 16,
    points: int = 1,
    seed: int = 0,
) -> Train:
    """A function of l: the losses ``[seeds, points]`` along SVAG, as ``compare_svag`` takes it.

    Args:
        net: where training starts; it is not changed.
        loss: as for ``gradient_noise``.
        data: as for ``gradient_noise``.
        lr: the step at l = 1.
        steps: how many at l = 1.
        batch_size: samples in a batch, drawn with replacement.
        seeds: trainings for each l.
        points: places, evenly along the training, at which the mean loss over all data is taken; 1 is its end.
        seed: of the batches.

    Raises:
        InvalidType, InvalidValue: what ``gradient_noise`` refuses; no step.
    """
    check_positive(lr=lr)
    check_integer(1, steps=steps, batch_size=batch_size)
    check_integer(2, seeds=seeds)
    check_integer(1, steps, points=points)
    check_integer(0, seed=seed)
    samples = Samples.of(net, loss, data)

    def train(factor: int) -> Tensor:
        keys = [(seed, k, factor) for k in range(seeds)]
        return torch.stack([_train(samples, factor, lr, steps, batch_size, points, key) for key in keys])

    return train


def _train(
    samples: Samples, factor: int, lr: float, steps: int, batch_size: int, points: int, key: tuple[int, ...]
) -> Tensor:
    """The losses at some places of one training ``[points]``; infinite from where they are not finite."""
    generator = torch.Generator().manual_seed(mixed_seed(*key))
    own = replace(samples, parameters=tree.map(lambda p: p.detach().clone().requires_grad_(), samples.parameters))
    batches = svag_weights(factor)[: 1 if factor == 1 else 2]  # the second has weight zero in SGD
    weights = torch.cat([torch.full((batch_size,), c / batch_size, dtype=torch.float64) for c in batches])
    found = torch.full((points,), math.inf, dtype=torch.float64)
    places = {round((k + 1) * steps * factor / points): k for k in range(points)}
    for step in range(1, steps * factor + 1):
        drawn = torch.randint(len(samples), (len(weights),), generator=generator, device="cpu").to(samples.device)
        slope = tree.pieces(own.gradient(samples.cloud[drawn], weights), own.leaves)
        with torch.no_grad():
            for p, g in zip(own.leaves, slope, strict=True):
                p.sub_(g.to(p), alpha=lr / factor)
        if step in places:
            value = own.losses().double().mean()
            if not bool(value.isfinite()):
                break
            found[places[step]] = value.cpu()
    return found


def compare_svag(
    train: Train,
    *,
    l: Sequence[int] = (1, 2, 4),  # noqa: E741
    margin: float = 0.1,
    confidence: float = 0.95,
) -> ValidSDE:
    """Whether a training of the user's own is the same at l = 1 and above; see ``svag_weights``.

    Args:
        train: ``train(l)`` trains by SVAG, with l times as many steps, and returns the losses of independent seeds at
            the end ``[S]``, or at the same times for every l ``[S, K]``.
        l: 1 and what it is compared with.
        margin: the relative gap between mean losses up to which they are said to agree.
        confidence: of the verdict, all comparisons together.

    Raises:
        InvalidType: no function, or it returned no tensor.
        InvalidValue: no 1 among l, or nothing beside it; fewer than two seeds; other shapes.
    """
    check_callable("a function l -> losses [S]", train=train)
    check_positive(margin=margin)
    check_between(0, 1, confidence=confidence)
    check_instance(Sequence, "a sequence of integers, (1, 2, 4)", l=l)
    for each in l:
        check_integer(1, l=each)
    order = tuple(sorted(set(l)))
    if order[:1] != (1,) or len(order) < 2:
        raise InvalidValue(f"l is {tuple(l)}; expected 1, which is SGD, and at least one above")
    losses = tuple(_checked(train(each), each) for each in order)
    if len({each.shape[1] for each in losses}) > 1:
        raise InvalidValue(f"train returned {[each.shape[1] for each in losses]} places; expected the same for every l")
    comparisons = (len(order) - 1) * losses[0].shape[1]
    level = 1 - (1 - confidence) / comparisons
    found = [_gap(losses[0], other, level) for other in losses[1:]]
    gaps, low, high = (torch.stack(part) for part in zip(*found, strict=True))
    return ValidSDE(order, losses, gaps, low, high, float(margin), float(confidence))


def _checked(found: Any, factor: int) -> Tensor:
    if not isinstance(found, Tensor):
        raise InvalidType(f"train({factor}) returned {kind_of(found)}; expected a tensor of losses [S]")
    if found.dim() not in (1, 2) or len(found) < 2 or not found.numel():
        raise InvalidValue(
            f"train({factor}) returned shape {tuple(found.shape)}; expected losses of two seeds or more, [S] or [S, K]"
        )
    return found.detach().double().cpu().reshape(len(found), -1)


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

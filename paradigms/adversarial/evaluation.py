"""How robust a network is: accuracies under attacks, with intervals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue, require
from mfoc.checks import check_between, check_flag, check_instance, check_integer, kind_of
from mfoc.games.maximisers import FGSM, PGD, Maximiser
from mfoc.networks import per_sample
from mfoc.networks.inspection import copied
from mfoc.printing import table
from mfoc.seeding import mixed_seed
from paradigms.adversarial.games import GameFormulation, Loss, frozen, game
from paradigms.adversarial.interop import FromTorchattacks
from paradigms.reporting import progress_bar

logger = logging.getLogger(__name__)

Attack = Maximiser | Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Accuracy:
    """The accuracy under one attack.

    Attributes:
        attack: its name.
        correct: particles that are classified right undisturbed and disturbed.
        total: particles.
        low, high: Wilson score interval.
        seconds: what the attack took.
    """

    attack: str
    correct: int
    total: int
    low: float
    high: float
    seconds: float

    @property
    def value(self) -> float:
        """The accuracy."""
        return self.correct / self.total


@dataclass(frozen=True)
class Robustness:
    """Accuracies under attacks; print it. ``table["PGD-20"].value`` is one of them.

    Attributes:
        rows: one for each attack, the undisturbed accuracy first ("clean").
        ball: what the attacks were allowed.
        confidence: level of the intervals.
    """

    rows: list[Accuracy]
    ball: mfoc.Ball
    confidence: float

    def __getitem__(self, attack: str) -> Accuracy:
        for row in self.rows:
            if isinstance(attack, str) and row.attack == attack:
                return row
        raise KeyError(f"{attack!r}; the table has {[row.attack for row in self.rows]}")

    def __repr__(self) -> str:
        head = (
            f"Accuracy on {self.rows[0].total} particles, {self.ball.norm} ball of radius {self.ball.epsilon:g} "
            f"({100 * self.confidence:.0f}% Wilson intervals)"
        )
        rows = [
            (row.attack, f"{row.value:.2%}", f"[{row.low:7.2%}, {row.high:7.2%}]", f"{row.seconds:.2f}")
            for row in self.rows
        ]
        return f"{head}\n{table(('attack', 'accuracy', 'interval', 'seconds'), rows)}"


def evaluate(
    net: nn.Module,
    data: Any,
    *,
    epsilon: float,
    norm: str = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    attacks: Mapping[str, Attack] | None = None,
    loss: Loss | nn.Module = F.cross_entropy,
    batch_size: int | None = 256,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
    part: int | str | None = None,
) -> Robustness:
    """Accuracy of a classifier under attacks.

    A particle counts as correct when it is classified right undisturbed and disturbed, so that attacks run on the
    particles that are right undisturbed only; no disturbance is an admissible one. Where the network returns NaN it
    has named no class, and the particle is wrong: an attack that gets there has succeeded.

    A particle's random start is a function of the seed, the attack's place and the particle's index: the table of our
    own attacks is the same whatever the batches.

    Args:
        net: the network, logits ``[N, classes]``, or one number ``[N]`` or ``[N, 1]`` where there are two classes; it
            is copied and run in evaluation mode.
        data: what ``mfoc.population`` takes; inputs and integer labels ``[N]``. Those of one number, 0 and 1 (-1 and 1
            for the soft margin loss), may be floats and may have a last axis of one.
        epsilon: radius of the ball.
        norm: "linf" or "l2".
        bounds: least and largest value of an input; None where there are none.
        attacks: name -> maximiser, or function of the network that makes an attack of torchattacks. When None: FGSM,
            PGD-20, and, for images ``[N, C, H, W]`` with bounds, APGD-CE and (from four classes on) AutoAttack, which
            is by far the slowest.
        loss: what the maximisers raise. A network of one number needs a loss of two classes, and is cut where that has
            it: ``F.binary_cross_entropy_with_logits``, ``F.soft_margin_loss`` and a function of one's own at zero,
            ``F.binary_cross_entropy`` at one half.
        batch_size: particles attacked at once; where the data have batches of their own (a DataLoader, a population, a
            function) those are used.
        confidence: level of the Wilson intervals.
        seed: of the attacks.
        progress: show a progress bar where ``rich`` is installed.
        part: which of several inputs is disturbed; see ``game``.

    Raises:
        InvalidType, InvalidValue: wrong arguments, or an attack that cannot take this input.
        MissingExtra: an attack of torchattacks is asked for and it is not installed.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    check_between(0, 1, confidence=confidence)
    check_flag(progress=progress)
    check_integer(0, 2**62 - 1, seed=seed)
    batched = isinstance(data, mfoc.Population | torch.utils.data.DataLoader) or callable(data)
    size = None if batched else batch_size
    verdict = _Verdict(loss)
    problem = frozen(copied(net).eval(), verdict.cost)
    formulation = game(problem, None, data, epsilon=epsilon, norm=norm, bounds=bounds, batch_size=size, part=part)
    batches = list(formulation.population.epoch())
    chosen = _defaults(formulation, batches[0], seed) if attacks is None else _checked(attacks)
    rows = []
    with progress_bar("attacks", (1 + len(chosen)) * len(batches), shown=progress) as tick:
        began = time.perf_counter()
        right = [_right(formulation, verdict, batch, tick) for batch in batches]
        rows.append(_row("clean", right, time.perf_counter() - began, confidence))
        for number, (name, attack) in enumerate(chosen.items()):
            began = time.perf_counter()
            survived = []
            for batch, alive in zip(batches, right, strict=True):
                generator = torch.Generator(alive.device).manual_seed(mixed_seed(seed, number))
                survived.append(_attacked(formulation, verdict, attack, batch, alive, generator))
                tick(name)
            rows.append(_row(name, survived, time.perf_counter() - began, confidence))
            logger.info("%s: %.4f", name, rows[-1].value)
    return Robustness(rows, formulation.problem.ball, confidence)


def _defaults(formulation: GameFormulation, batch: mfoc.Particles, seed: int) -> dict[str, Maximiser]:
    attacks: dict[str, Maximiser] = {"FGSM": FGSM(), "PGD-20": PGD(20)}
    ball = formulation.problem.ball
    if formulation.problem.target(batch.state).dim() != 4 or ball.bounds is None:
        return attacks
    library = require("torchattacks", "adversarial")
    low, high = ball.bounds
    settings = {"eps": ball.epsilon / (high - low), "norm": {"linf": "Linf", "l2": "L2"}[ball.norm]}
    attacks["APGD-CE"] = FromTorchattacks(lambda net: library.APGD(net, steps=20, seed=seed, loss="ce", **settings))
    logits = _logits(formulation, batch[:1])
    classes = 2 if _single(logits) else logits.shape[1]
    if classes >= 4:
        attacks["AutoAttack"] = FromTorchattacks(
            lambda net: library.AutoAttack(net, n_classes=classes, seed=seed, **settings)
        )
    return attacks


def _checked(attacks: Mapping[str, Attack]) -> dict[str, Maximiser]:
    if not isinstance(attacks, Mapping):
        raise InvalidType(f"attacks is {kind_of(attacks)}; expected a dict from names to attacks")
    chosen: dict[str, Maximiser] = {}
    for name, attack in attacks.items():
        if not isinstance(name, str):
            raise InvalidType(f"attacks has the key {name!r}, {kind_of(name)}; expected the names of attacks")
        if name == "clean":
            raise InvalidValue("attacks has the name 'clean', that of the undisturbed accuracy; choose another")
        if isinstance(attack, type) or not isinstance(attack, Maximiser):
            attack = FromTorchattacks(attack)
        chosen[name] = attack
    return chosen


def _logits(formulation: GameFormulation, batch: mfoc.Particles) -> Tensor:
    with torch.no_grad():
        out: Tensor = mfoc.rollout(formulation.problem, formulation.problem.controls, batch).states[-1]
    return out


class _Verdict:
    """What is raised, and when a network is right.

    Attributes:
        cost: the loss, whose labels are made to fit a network of one number.
    """

    def __init__(self, loss: Loss | nn.Module) -> None:
        self.cost: Any = loss
        self._loss: Any = loss
        while hasattr(self._loss, "func"):  # of partials
            self._loss = self._loss.func
        kind = type(self._loss) if isinstance(self._loss, nn.Module) else self._loss
        self._own = not str(getattr(kind, "__module__", "")).startswith("torch.")
        self._cut = (0, 0.0) if self._own else _CUTS.get(kind)
        if callable(loss) and not isinstance(loss, type) and not self._own:
            self.cost = self._fitted(per_sample(loss))

    def _fitted(self, each: Loss) -> Loss:
        def cost(output: Any, z: Any) -> Tensor:
            if _single(output) and isinstance(z, Tensor):
                self._threshold(output)
                if z.numel() == len(output):
                    z = z.reshape(output.shape).to(output.dtype)
            return each(output, z)

        return cost

    def _threshold(self, output: Tensor) -> tuple[int, float]:
        """The lesser label, and where the number that stands for it ends."""
        if self._cut is None:
            name = getattr(self._loss, "__name__", type(self._loss).__name__)
            raise InvalidValue(
                f"the network returns one number for each particle, {tuple(output.shape)}, of which {name} makes no "
                "two classes; pass loss=F.binary_cross_entropy_with_logits, or let the network return a logit for each "
                "class"
            )
        return self._cut

    def right(self, output: Tensor, labels: Any) -> Tensor:
        """Which particles are classified right ``[N]``; NaN stands for no class."""
        if _single(output):
            least, threshold = self._threshold(output)
            if not isinstance(labels, Tensor) or labels.numel() != len(output) or labels.dim() > 2:
                raise InvalidType(_misfit(output, labels, f"one number [N] needs a label {least} or 1 for each"))
            labels, output = labels.flatten(), output.flatten()
            bad = (labels != least) & (labels != 1)
            if bad.any():
                raise InvalidValue(f"the labels hold {labels[bad][0].item()}; expected {least} and 1 for one logit")
            right: Tensor = ((output > threshold) == (labels == 1)) & ~output.isnan()
            return right
        integer = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 1
        if output.dim() != 2 or not integer:
            raise InvalidType(_misfit(output, labels, "accuracy needs logits [N, classes] and integer labels [N]"))
        right = (output.argmax(1) == labels) & ~output.isnan().any(1)
        return right


_CUTS: dict[Any, tuple[int, float]] = {  # losses of one number: the lesser label, and where the number is cut
    F.binary_cross_entropy_with_logits: (0, 0.0),
    nn.BCEWithLogitsLoss: (0, 0.0),
    F.binary_cross_entropy: (0, 0.5),
    nn.BCELoss: (0, 0.5),
    F.soft_margin_loss: (-1, 0.0),
    nn.SoftMarginLoss: (-1, 0.0),
}


def _single(output: Any) -> bool:
    """Whether a network returns one number for each particle."""
    return isinstance(output, Tensor) and (output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1))


def _misfit(output: Tensor, labels: Any, expected: str) -> str:
    given = f"{tuple(labels.shape)} {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
    return f"{expected}; the network returns {tuple(output.shape)} and the labels are {given}"


def _right(
    formulation: GameFormulation, verdict: _Verdict, batch: mfoc.Particles, tick: Callable[[str], None]
) -> Tensor:
    right = verdict.right(_logits(formulation, batch), batch.data)
    tick("clean")
    return right


def _attacked(
    formulation: GameFormulation,
    verdict: _Verdict,
    attack: Maximiser,
    batch: mfoc.Particles,
    alive: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Which particles are still classified right."""
    if not alive.any():
        return alive
    made, some = formulation.problem, batch[alive]
    eta = attack.maximise(made, made.controls, some, generator)
    survived = alive.clone()
    survived[alive] = verdict.right(_logits(formulation, made.disturb(some, eta)), some.data)
    return survived


def _row(name: str, survived: list[Tensor], seconds: float, confidence: float) -> Accuracy:
    correct, total = sum(int(s.sum()) for s in survived), sum(len(s) for s in survived)
    return Accuracy(name, correct, total, *wilson(correct, total, confidence), seconds)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion, ``successes`` out of ``trials`` (Wilson 1927).

    Raises:
        InvalidType, InvalidValue: no counts, no trials, more successes than trials, no level of confidence.
    """
    check_integer(1, trials=trials)
    check_integer(0, trials, successes=successes)
    check_between(0, 1, confidence=confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)

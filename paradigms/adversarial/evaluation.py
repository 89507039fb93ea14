"""How robust a network is: accuracies under attacks, with intervals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from mfoc.networks.inspection import copied
from mfoc.printing import table
from mfoc.seeding import mixed_seed
from paradigms.adversarial.drawing import draw_attacks, draw_radii
from paradigms.adversarial.games import GameFormulation, Loss, frozen, game
from paradigms.adversarial.interop import FromTorchattacks
from paradigms.adversarial.verdicts import Verdict, single
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
    """Accuracies under attacks; print it, or ``.plot()`` it. ``table["PGD-20"].value`` is one of them.

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

    def under(self, attack: str) -> Accuracy:
        """The accuracy under an attack.

        Raises:
            InvalidValue: there is no such attack in the table.
        """
        try:
            return self[attack]
        except KeyError as error:
            raise InvalidValue(f"attack is {error.args[0]}") from None

    def plot(self, *others: Robustness) -> Any:
        """Accuracies with their intervals, a ``matplotlib.figure.Figure``; with others, against the radius.

        Args:
            *others: tables of the same network at other radii: each attack then has a curve.

        Raises:
            InvalidType: something else than tables.
            InvalidValue: tables of several norms or levels of confidence, or two at one radius.
            MissingExtra: matplotlib is not installed.
        """
        norm, total = self.ball.norm, self.rows[0].total
        tables = by_radius([self, *others])
        if len(tables) == 1:
            title = f"Accuracy on {total} particle{'s' * (total != 1)}, {norm} ball of radius {self.ball.epsilon:g}"
            return draw_attacks({row.attack: row for row in self.rows}, title=title, confidence=self.confidence)
        clean = tables[0].rows[0]
        curves: dict[str, list[tuple[float, Accuracy]]] = {}
        for each in tables:
            for row in each.rows[1:]:
                curves.setdefault(row.attack, [(0.0, clean)]).append((each.ball.epsilon, row))
        title = f"Accuracy on {total} particles against the radius of the ball"
        return draw_radii(curves or {"clean": [(0.0, clean)]}, title=title, norm=norm, confidence=self.confidence)


def by_radius(tables: Sequence[Robustness], *, repeated: bool = False) -> list[Robustness]:
    """Tables in ascending order of their radius, which are of one norm and one level of confidence.

    Args:
        tables: what ``evaluate`` returned.
        repeated: whether two may be of one radius.

    Raises:
        InvalidType: something else than tables.
        InvalidValue: several norms, or levels; two of one radius.
    """
    for place, each in enumerate(tables):
        check_instance(Robustness, "what evaluate(net, data, epsilon=...) returned", **{f"tables[{place}]": each})
    kinds = {(each.ball.norm, each.confidence) for each in tables}
    if len(kinds) > 1:
        raise InvalidValue(f"tables are of the norms and levels {sorted(kinds)}; expected one norm and one level")
    radii = [each.ball.epsilon for each in tables]
    if not repeated and len(set(radii)) < len(radii):
        raise InvalidValue(f"tables are at the radii {radii}; expected one at each radius")
    return sorted(tables, key=lambda each: each.ball.epsilon)


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
    verdict = Verdict(loss)
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
    classes = 2 if single(logits) else logits.shape[1]
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


def _right(
    formulation: GameFormulation, verdict: Verdict, batch: mfoc.Particles, tick: Callable[[str], None]
) -> Tensor:
    right = verdict.right(_logits(formulation, batch), batch.data)
    tick("clean")
    return right


def _attacked(
    formulation: GameFormulation,
    verdict: Verdict,
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

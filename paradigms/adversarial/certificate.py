"""How near a game is to its saddle point: stationarity of both players and the duality gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_between, check_instance, check_integer, kind_of
from mfoc.distributed import alone
from mfoc.formulation import Formulation
from mfoc.games import costate_at, entering
from mfoc.games.maximisers import PGD, Maximiser
from mfoc.problem import controls_of
from paradigms.adversarial.drawing import draw_game
from paradigms.reporting import Estimate, student_interval


@dataclass(frozen=True)
class GameCertificate:
    """The certificate of a game; print it, or ``.plot()`` it.

    Attributes:
        minimiser: Pontryagin's certificate of the controls, with the adversary's present answer frozen.
        adversary: the adversary's first-order stationarity, E max <dJ/deta, eta' - eta> over admissible eta' (Wang et
            al. 2019, "On the convergence and robustness of adversarial training", eq. 8): 0 at a stationary point.
        gap: E[cost at the best response] - E[cost at the present answer]: how much a stronger adversary gains, and a
            lower bound of what the strongest would. It estimates the adversary's share of the duality gap.
        present, best: the two mean costs.
        clean: the mean cost without disturbance.
        confidence: level of the intervals.
    """

    minimiser: mfoc.Certificate
    adversary: Estimate
    gap: Estimate
    present: float
    best: float
    clean: float
    confidence: float

    def __repr__(self) -> str:
        return (
            f"Certificate of a game on {self.minimiser.particles} particles ({100 * self.confidence:.0f}% intervals)\n"
            f"cost: clean {self.clean:.4g}, present adversary {self.present:.4g}, best response {self.best:.4g}\n"
            f"adversary: first-order gap {self.adversary}; duality gap (best response - present) {self.gap}\n"
            f"minimiser, adversary frozen: {self.minimiser}"
        )

    def plot(self) -> Any:
        """The three costs, and how far the adversary is from its best answer: a ``matplotlib.figure.Figure``.

        The minimiser's part has a figure of its own, ``found.minimiser.plot()``.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        costs = {"clean": self.clean, "present adversary": self.present, "best response": self.best}
        gaps = {"first-order gap": self.adversary, "duality gap": self.gap}
        return draw_game(costs, gaps, particles=self.minimiser.particles, confidence=self.confidence)


@alone()
def certify(
    formulation: Formulation,
    solution: Any,
    *,
    maximiser: Maximiser,
    best_response: Maximiser | None = None,
    restarts: int = 2,
    population: Any = None,
    confidence: float = 0.95,
    seed: int = 0,
    **settings: Any,
) -> GameCertificate:
    """Measures how near a solved game is to its saddle point.

    The particles of one epoch are taken as one cloud: give a subsample of a population that does not fit in memory.
    That each particle keeps the best disturbance found for it presumes that particles do not interact (as they do
    through batch norm in training mode).

    Args:
        formulation: what ``game`` returned.
        solution: the solution, an iterate, or controls.
        maximiser: the adversary the game was solved against; its answer is the present disturbance.
        best_response: a stronger adversary; ``PGD(100)`` when None.
        restarts: runs of it; each particle keeps the best disturbance found, the present one included.
        population: what ``mfoc.population`` takes; the formulation's when None.
        confidence: level of the intervals.
        seed: of the random starts, and of ``mfoc.certify``.
        **settings: of ``mfoc.certify``, for the minimiser's part.

    Raises:
        InvalidType, InvalidValue: wrong arguments.
    """
    made = getattr(formulation, "problem", None)
    if not isinstance(made, mfoc.Game):
        raise InvalidType(f"formulation is {kind_of(formulation)} of no game; expected what game(...) returned")
    stronger = PGD(100) if best_response is None else best_response
    expected = "an adversary, such as the PGD(20) that the game was solved against"
    check_instance(Maximiser, expected, maximiser=maximiser, best_response=stronger)
    check_integer(0, 2**62 - 1, seed=seed)
    check_integer(1, restarts=restarts)
    check_between(0, 1, confidence=confidence)
    controls = controls_of(solution)
    cloud = _cloud(made, formulation.population if population is None else mfoc.population(population))
    made.validate(cloud, controls)

    def cost(eta: Tensor | None) -> Tensor:
        with torch.no_grad():
            return mfoc.rollout(made, controls, cloud if eta is None else made.disturb(cloud, eta)).cost

    states = entering(made, controls, cloud)
    x = made.target(states)
    generator = torch.Generator(x.device).manual_seed(seed)
    eta = maximiser.maximise(made, controls, cloud, generator)
    slack = made.ball.gap(x, eta, costate_at(made, controls, states, cloud.data, eta))
    present = best = cost(eta)
    for _ in range(restarts):
        best = torch.maximum(best, cost(stronger.maximise(made, controls, cloud, generator)))
    return GameCertificate(
        mfoc.certify(made, controls, made.disturb(cloud, eta), confidence=confidence, seed=seed, **settings),
        student_interval(slack, confidence),
        student_interval(best - present, confidence),
        float(present.mean()),
        float(best.mean()),
        float(cost(None).mean()),
        confidence,
    )


def _cloud(made: mfoc.Game, population: mfoc.Population) -> mfoc.Particles:
    """All particles to measure on, as one cloud of the game."""
    cloud = population.cloud()
    if made.part is not None and isinstance(cloud.state, Tensor):
        cloud = mfoc.Particles((cloud.state, cloud.state), cloud.data, cloud.index)
    if len(cloud) < 2:
        raise InvalidValue("the population holds one particle; an interval needs at least two")
    check_inside(made, cloud)
    return cloud


def check_inside(made: mfoc.Game, particles: mfoc.Particles) -> None:
    """Refuses particles whose states at the disturbed stage exceed the game's bounds.

    Raises:
        InvalidValue: says by how much.
    """
    bounds = made.ball.bounds
    if bounds is None:
        return
    x = made.target(entering(made, made.controls, particles))
    low, high = float(x.min()), float(x.max())
    if low < bounds[0] or high > bounds[1]:
        what = "the data reach" if made.stage == 0 else f"the states that enter stage {made.stage} reach"
        raise InvalidValue(
            f"bounds is {bounds} and {what} from {low:.4g} to {high:.4g}; pass their true range, or bounds=None"
        )

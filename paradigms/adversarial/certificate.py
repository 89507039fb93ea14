"""How near a game is to its saddle point: stationarity of both players and the duality gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidValue
from mfoc.checks import check_between, check_instance, check_integer
from mfoc.games import costate_at, entering
from mfoc.games.maximisers import PGD, Maximiser
from mfoc.problem import controls_of
from paradigms.adversarial.checks import check_inside
from paradigms.reporting import Estimate, normal_interval


@runtime_checkable
class Playable(Protocol):
    """What is certified: a game and what it is solved on, as ``game`` returns them."""

    @property
    def problem(self) -> mfoc.Game:
        """The game."""

    @property
    def population(self) -> mfoc.Population:
        """What it is solved on."""

    def cloud(self, x: Tensor, z: Any) -> mfoc.Particles:
        """Inputs and targets as particles of the game."""


@dataclass(frozen=True)
class GameCertificate:
    """The certificate of a game; print it.

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

    def __str__(self) -> str:
        return "\n".join(
            [
                f"Certificate of a game on {self.minimiser.particles} particles "
                f"({100 * self.confidence:.0f}% intervals)",
                f"cost: clean {self.clean:.4g}, present adversary {self.present:.4g}, best response {self.best:.4g}",
                f"adversary: first-order gap {self.adversary}; duality gap (best response - present) {self.gap}",
                f"minimiser, adversary frozen: {self.minimiser}",
            ]
        )


def certify(
    formulation: Playable,
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
    check_instance(Playable, "what game(...) returned", formulation=formulation)
    stronger = PGD(100) if best_response is None else best_response
    expected = "an adversary, such as the PGD(20) that the game was solved against"
    check_instance(Maximiser, expected, maximiser=maximiser, best_response=stronger)
    check_integer(0, 2**62 - 1, seed=seed)
    check_integer(1, restarts=restarts)
    check_between(0, 1, confidence=confidence)
    made, controls = formulation.problem, controls_of(solution)
    cloud = _cloud(formulation, population)
    made.validate(cloud, controls)
    clean, present, best, slack, eta = _measure(made, controls, cloud, maximiser, stronger, restarts, seed)
    minimiser = mfoc.certify(made, controls, made.disturb(cloud, eta), confidence=confidence, seed=seed, **settings)
    return GameCertificate(
        minimiser,
        Estimate(*normal_interval(slack, confidence)),
        Estimate(*normal_interval(best - present, confidence)),
        float(present.mean()),
        float(best.mean()),
        float(clean.mean()),
        confidence,
    )


def _cloud(formulation: Playable, population: Any) -> mfoc.Particles:
    """All particles to measure on, as one cloud of the game."""
    source = formulation.population if population is None else mfoc.population(population)
    cloud = source.cloud()
    if isinstance(cloud.state, Tensor):
        cloud = formulation.cloud(cloud.state, cloud.data)
    if len(cloud) < 2:
        raise InvalidValue("the population holds one particle; an interval needs at least two")
    check_inside(formulation.problem, cloud)
    return cloud


def _measure(
    made: mfoc.Game,
    controls: Any,
    batch: mfoc.Particles,
    maximiser: Maximiser,
    stronger: Maximiser,
    restarts: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Clean, present and best cost and the first-order gap of each particle ``[N]``, and the present disturbance."""

    def cost(eta: Tensor | None) -> Tensor:
        with torch.no_grad():
            return mfoc.rollout(made, controls, batch if eta is None else made.disturb(batch, eta)).cost

    states = entering(made, controls, batch)
    x = made.target(states)
    generator = torch.Generator(x.device).manual_seed(seed)
    eta = maximiser.maximise(made, controls, batch, generator)
    slope = costate_at(made, controls, states, batch.data, eta) * len(batch)
    present = cost(eta)
    best = present
    for _ in range(restarts):
        best = torch.maximum(best, cost(stronger.maximise(made, controls, batch, generator)))
    return cost(None), present, best, made.ball.gap(x, eta, slope), eta

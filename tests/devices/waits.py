"""Solvers whose waits for the device are counted, and the count: what a GPU's queue is emptied for.

``python -m tests.devices`` prints every wait of a step of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.devices import paper
from tests.devices.public import classified, moved, steered
from tests.problems import Case, interacting, mlp, normal, seeded, tied

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=0.01)


def plain(tree: Any) -> Any:
    """Leaves a tree where it is."""
    return tree


def game() -> Case:
    """A network against an adversary."""
    net, loss, data = classified(plain)
    made = mfoc.Game.of(mfoc.from_module(net, loss), mfoc.Ball(0.1, "l2"))
    return made, mfoc.population(data).cloud()


def signs() -> Case:
    """A network whose weights are signs."""
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)))
    with torch.no_grad():
        for weight in net.parameters():
            weight.sign_()
    return mfoc.from_module(net, F.cross_entropy), mfoc.population(classified(plain)[2]).cloud()


def steering() -> Case:
    """Particles that are steered to the origin."""
    return steered(plain), mfoc.Particles(normal(6, 1))


def constrained() -> Case:
    """A constraint in the end."""
    equality = mfoc.Equality(lambda x, z: x.mean(0, keepdim=True).expand_as(x))
    return steered(plain, terminal=equality), mfoc.Particles(normal(6, 1))


@dataclass(frozen=True)
class Counted:
    """A solver, the problems it is counted on, and the most waits and copies of one of its steps.

    Attributes:
        solver: the solver.
        most: how many waits a step may have on a problem of T stages: those of decisions by a number of the device.
        problems: the problems; each makes a problem and its particles.
        copies: how often numbers of the host may be sent.
    """

    solver: Any
    most: Callable[[int], int]
    problems: tuple[Callable[[], Case], ...] = (mlp, interacting, tied)
    copies: int = 0


SOLVERS = {
    "Gradient(SGD)": Counted(mfoc.Gradient(partial(SGD, momentum=0.9)), lambda T: 0),
    "Gradient(Adam)": Counted(mfoc.Gradient(ADAM), lambda T: 0),
    "Gradient(Adam, recompute)": Counted(mfoc.Gradient(ADAM, recompute=True), lambda T: 0),
    # whether a stage fell without end
    "MSA": Counted(mfoc.MSA(mfoc.minimisers.Descent(0.05, steps=3)), lambda T: 1),
    # J before and after a try, the gaps that weigh it, and the inner minimiser's own
    "EMSA": Counted(mfoc.EMSA(1.0, adaptive=True, inner=mfoc.minimisers.LBFGS(3)), lambda T: 7 + 6 * T, copies=2),
    # whether J is finite, the first slope of a search, its products and its end, and what J says of its step
    "NewtonCG": Counted(mfoc.NewtonCG(products=4), lambda T: 4 + 4),
    "NewtonCG(radius)": Counted(mfoc.NewtonCG(radius=0.1, products=4), lambda T: 4 + 4),
    # which particles go on, for each try; what it reports
    "DDP": Counted(mfoc.DDP(), lambda T: 5, (steering,)),
    # the residual, by which it is seen whether the slopes are finite; J before and after
    "DDPNOpt": Counted(mfoc.DDPNOpt(lr=0.1), lambda T: 3, (mlp,)),
    "DiscreteMSA": Counted(mfoc.DiscreteMSA("binary"), lambda T: 1, (signs,)),
    "Minimax(PGD)": Counted(mfoc.Minimax(mfoc.maximisers.PGD(2), SGD), lambda T: 0, (game,)),
    # what it reports of the perturbation
    "Minimax(YOPO)": Counted(mfoc.Minimax(mfoc.maximisers.YOPO(2, 2), SGD), lambda T: 1, (game,)),
    # the residual of each of five steps inside; the violation before and after, and whether controls are finite
    "AugmentedLagrangian": Counted(
        mfoc.AugmentedLagrangian(mfoc.Gradient(SGD), steps=5), lambda T: 5 + 5, (constrained,)
    ),
}


def step(solver: Any, made: Callable[[], Case]) -> tuple[int, paper.Log]:
    """How many stages a problem has, and what its second step asks of the device."""
    with paper.on_paper() as log:
        problem, particles = moved(made(), paper.to_paper)
        state = solver.init(problem, problem.controls)
        controls, state, _ = solver.step(problem, problem.controls, state, particles)
        log.clear()
        solver.step(problem, controls, state, particles)
        return problem.stages if problem.per_stage else 1, log


def solve(steps: int, optimizer: Any = SGD) -> list[str]:
    """The waits of a whole solve by ``Gradient``."""
    with paper.on_paper() as log:
        problem, particles = moved(mlp(), paper.to_paper)
        mfoc.solve(problem, mfoc.Gradient(optimizer), particles, steps=steps)
        return log.waits

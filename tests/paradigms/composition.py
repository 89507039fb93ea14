"""Each paradigm, and what is composed of two, with each solver: which go together, and why the others do not.

    python -m tests.paradigms.composition             # prints the table, and below it the words of each refusal
    python -m tests.paradigms.composition --readme    # writes the table into the README

A formulation is a problem, so that paradigms compose: an adversary may disturb the inputs of a Bayesian network, or the
query inputs of tasks that a network is meta-learned on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms import adversarial, bayesian, meta
from tests.problems import D, normal, seeded
from tests.readme import write

STEPS = 3
LOWER, HIGHER = "yes", "J rises"
_SGD = partial(torch.optim.SGD, lr=0.01)


def _net(inputs: int, outputs: int) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs)))


def _classes() -> tuple[torch.Tensor, torch.Tensor]:
    x = normal(12, 3)
    return x, (x.sum(1) > 0).long()


def _formulation(problem: mfoc.Problem, source: Any) -> mfoc.Formulation:
    return mfoc.Formulation(problem, mfoc.population(source), mfoc.controls_of)


def network() -> mfoc.Formulation:
    stages = [["0", "1"], ["2"]]
    problem = mfoc.from_module(_net(3, 2), F.cross_entropy, running_cost=mfoc.weight_decay(1e-3), stages=stages)
    return _formulation(problem, _classes())


def _swarm(drift: Any, *shape: int, **options: Any) -> mfoc.Problem:
    controls = [torch.zeros(*shape, 2, dtype=D) for _ in range(4)]
    cost = {"terminal_cost": lambda x, z: (x - 1).square().sum(1)}
    running = {"running_cost": lambda t, x, u, z: 0.1 * u.square().sum(-1).expand(len(x))}
    return mfoc.continuous(drift, controls=controls, **cost, **running, **options)


def swarm() -> mfoc.Formulation:
    return _formulation(_swarm(lambda t, x, u, z: mfoc.mean(x) - x + u), normal(6, 2))


def per_particle() -> mfoc.Formulation:
    return _formulation(_swarm(lambda t, x, u, z: x.sin() + u, 6, per_particle=True), normal(6, 2))


def policy() -> mfoc.Formulation:
    gains = mfoc.linear_policy(lambda x: x, torch.zeros(2, 2, dtype=D))
    return _formulation(mfoc.feedback(_swarm(lambda t, x, u, z: x.sin() + u), gains), normal(6, 2))


def equilibrium() -> mfoc.Formulation:
    return _formulation(mfoc.Equilibrium(swarm().problem), normal(6, 2))


def game() -> mfoc.Formulation:
    return adversarial.game(_net(3, 2), F.cross_entropy, _classes(), epsilon=0.1, bounds=None)


def trades() -> mfoc.Formulation:
    return adversarial.game(_net(3, 2), adversarial.TRADES(beta=6.0), _classes(), epsilon=0.1, bounds=None)


def variational() -> mfoc.Formulation:
    return bayesian.variational(_net(3, 2), _classes(), likelihood="categorical", samples=2)


def follmer() -> mfoc.Formulation:
    target = bayesian.log_density(lambda x: -x.square().sum(1), like=torch.zeros(2, dtype=D))
    return bayesian.follmer(target, steps=3, particles=8)


def _meta(algorithm: Any, **options: Any) -> mfoc.Formulation:
    tasks = meta.sinusoids(tasks=4, dtype=D, device="cpu")
    return algorithm(_net(1, 1), F.mse_loss, tasks, inner_steps=2, inner_lr=0.01, **options)


def robust_variational() -> mfoc.Formulation:
    """A Bayesian network whose inputs are attacked: one adversary against the whole posterior."""
    made = variational()
    return mfoc.Formulation(mfoc.Game.of(made.problem, mfoc.Ball(0.1)), made.population, made.readout)


def robust_maml() -> mfoc.Formulation:
    """Fast weights that stand an attack on the query inputs, which ride along in the state until they are used."""
    made = _meta(meta.maml)
    problem = made.problem

    def queries(z: Any, x: Any) -> Any:
        return {**z, "query": (x, z["query"][1])}

    joint = mfoc.Problem(
        lambda t, x, u, z: (problem.dynamics(t, x[0], u, z), x[1]),
        lambda x, z: problem.terminal_cost(x[0], queries(z, x[1])),
        problem.controls,
        horizon=problem.stages,
        schedule=mfoc.tied,
    )
    tasks = mfoc.population(lambda n: _with_queries(made.population(n)))
    return mfoc.Formulation(mfoc.Game.of(joint, mfoc.Ball(0.1), part=1), tasks, made.readout)


def _with_queries(tasks: mfoc.Particles) -> mfoc.Particles:
    return mfoc.Particles((tasks.state, tasks.data["query"][0]), tasks.data)


FORMULATIONS: dict[str, Callable[[], mfoc.Formulation]] = {
    "a network": network,
    "a swarm, one control": swarm,
    "a path for each particle": per_particle,
    "a feedback": policy,
    "a mean-field game": equilibrium,
    "`adversarial.game`": game,
    "`game`, TRADES": trades,
    "`bayesian.variational`": variational,
    "`bayesian.follmer`": follmer,
    "`meta.maml`": lambda: _meta(meta.maml),
    "`meta.imaml`": lambda: _meta(meta.imaml, strength=1.0),
    "`meta.reptile`": lambda: _meta(meta.reptile),
    "`variational`, inputs attacked": robust_variational,
    "`maml`, query inputs attacked": robust_maml,
}
SOLVERS: dict[str, mfoc.Solver] = {
    "`Gradient`": mfoc.Gradient(_SGD),
    "`MSA`": mfoc.MSA(),
    "`EMSA`": mfoc.EMSA(),
    "`NewtonCG`": mfoc.NewtonCG(),
    "`DDP`": mfoc.DDP(),
    "`DDPNOpt`": mfoc.DDPNOpt(lr=0.01),
    "`DiscreteMSA`": mfoc.DiscreteMSA(),
    "`Minimax`": mfoc.Minimax(adversarial.PGD(2), _SGD),
    "`CrossEntropy`": bayesian.CrossEntropy(mfoc.Gradient(_SGD)),
}
CERTIFICATE = "`certify`"


@dataclass(frozen=True)
class Cell:
    """What a formulation and a solver say to one another.

    Attributes:
        mark: ``LOWER`` (of a game's equilibrium: its residual), ``HIGHER``, or "-" where it is refused.
        words: of the refusal.
    """

    mark: str
    words: str = ""


def cell(make: Callable[[], mfoc.Formulation], solver: mfoc.Solver) -> Cell:
    """A few steps of the solver, and whether J is lower after them, on the first batch."""
    made = make()
    problem = made.problem
    measure = "residual" if isinstance(problem, mfoc.Equilibrium) else "value"  # players do not minimise J together
    try:
        if isinstance(solver, mfoc.DiscreteMSA):
            problem = solver.discretised(problem)
        solution = mfoc.solve(problem, solver, made.population, steps=STEPS)
    except mfoc.MfocError as error:
        return Cell("-", str(error))
    fell = getattr(solution, measure) < solution.history[0][measure]
    return Cell(LOWER if fell and solution.status is mfoc.Status.MAX_STEPS else HIGHER)


def certified(make: Callable[[], mfoc.Formulation]) -> Cell:
    made = make()
    try:
        if isinstance(made.problem, mfoc.Game):
            adversarial.certify(made, made.problem, maximiser=adversarial.PGD(2), lanczos=2)
        else:
            made.certify(made.problem, lanczos=2)
    except mfoc.MfocError as error:
        return Cell("-", str(error))
    return Cell(LOWER)


def row(name: str) -> dict[str, Cell]:
    """A line of the table."""
    make = FORMULATIONS[name]
    return {solver: cell(make, SOLVERS[solver]) for solver in SOLVERS} | {CERTIFICATE: certified(make)}


def table(rows: dict[str, dict[str, Cell]]) -> str:
    columns = [*SOLVERS, CERTIFICATE]
    lines = [["problem", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(cells[column].mark for column in columns)] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    into_readme = parser.parse_args().readme
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # a solve that diverges says so; here the table does
    rows = {name: row(name) for name in FORMULATIONS}
    print(table(rows))
    for name, cells in rows.items():
        for solver, found in cells.items():
            if found.words:
                print(f"\n{name}, {solver}: {found.words}")
    if into_readme:
        write("composition", table(rows))


if __name__ == "__main__":
    sys.exit(main())

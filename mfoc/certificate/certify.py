"""A certificate of optimality for controls, however they were found.

By Pontryagin's principle an optimal control minimises E H_t at every stage, with states and costates on its own
trajectory. The certificate measures, stage by stage, how far that is from true: to first order the stationarity
residual ||E dH/du||, to second order the smallest eigenvalue of E d2H/du2, and globally the Hamiltonian gap
E H(u) - min_u E H(u). Each comes with a bootstrap interval over particles.

The residual is the gradient of J and vanishes at every local minimum. That u_t minimises H is necessary in continuous
time; in discrete time it is so where the reachable sets f_t(x, U) and the costs are suitably convex (Halkin 1966), and
else up to the square of the step: a gap or a negative curvature that shrinks with the step size is no defect of
the control. (Take f(u) = (u, -u^2/2) and Phi(a, b) = a^2 + b: J = u^2/2 has its minimum at 0, where H = -u^2/2.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mfoc import tree
from mfoc.certificate.study import Bootstrap, Measure, Study, memberships
from mfoc.checks import check_between, check_flag, check_instance, check_integer
from mfoc.errors import InvalidType, InvalidValue
from mfoc.frozen import Sweep
from mfoc.minimisers import LBFGS, Minimiser, check_minimiser
from mfoc.networks import Loss, from_module, named_stages
from mfoc.populations import population as as_population
from mfoc.printing import html_table, table
from mfoc.problem import HasControls, Problem, RunningCost, controls_of
from mfoc.tree import Tree

_HEADER = ("stage", "controls", "residual ||E dH/du||", "gap E H - min E H", "curvature min eig E d2H/du2")
_SHOWN = 12  # stages in the printed table; of more, those of the largest residuals


@dataclass(frozen=True)
class StageCertificate:
    """What is certified of one stage (of all stages together, when the control is shared by them).

    Attributes:
        name: the stage.
        parameters: how many numbers its control holds.
        residual: ||E dH/du||.
        gap: E H(u) - min_u E H(u), by the inner minimiser from u, so a lower bound; infinite where H appears to be
            unbounded below (a linear layer without weight decay); NaN where the inner minimiser failed.
        curvature: smallest eigenvalue of E d2H/du2, by Lanczos: an upper bound, within ``curvature_error`` of some
            eigenvalue (more ``lanczos`` products make it smaller).
        curvature_error: the residual norm of the eigenpair.
    """

    name: str
    parameters: int
    residual: Measure
    gap: Measure
    curvature: Measure
    curvature_error: float

    def row(self) -> tuple[object, ...]:
        """Its line in the table; the error of the curvature where it matters."""
        matters = self.curvature_error > 0.05 * abs(self.curvature.value)
        error = f"  (± {self.curvature_error:.0e})" if matters else ""
        return self.name, self.parameters, self.residual, self.gap, f"{self.curvature}{error}"


@dataclass(frozen=True, repr=False)
class Certificate:
    """The certificate of a control; print it, or draw it with ``mfoc.plot.certificate``.

    Attributes:
        stages: one entry for each stage that has a control.
        value: J.
        particles: how many particles it is measured on.
        confidence: level of the intervals.
        backward_passes: what it cost, in backward passes over the whole horizon.
    """

    stages: list[StageCertificate]
    value: float
    particles: int
    confidence: float
    backward_passes: float

    @property
    def residual(self) -> float:
        """||E dH/du|| over all stages."""
        return math.hypot(*(stage.residual.value for stage in self.stages))

    @property
    def gap(self) -> float:
        """The sum of the stages' Hamiltonian gaps."""
        return math.fsum(stage.gap.value for stage in self.stages)

    def __repr__(self) -> str:
        """A table of the stages, of the dozen with the largest residuals where there are more, and the totals."""
        order = sorted(range(len(self.stages)), key=lambda k: -self.stages[k].residual.value)[:_SHOWN]
        lines = [self._head, table(_HEADER, [self.stages[k].row() for k in sorted(order)])]
        if rest := len(self.stages) - len(order):
            lines.append(f"and {rest} stages with smaller residuals, in .stages")
        return "\n".join([*lines, self._totals])

    def _repr_html_(self) -> str:
        return html_table(_HEADER, [stage.row() for stage in self.stages], caption=f"{self._head}; {self._totals}")

    @property
    def _head(self) -> str:
        return (
            f"Pontryagin certificate on {self.particles} particles, J = {self.value:.6g} "
            f"({100 * self.confidence:.0f}% bootstrap intervals; {self.backward_passes:.0f} backward passes)"
        )

    @property
    def _totals(self) -> str:
        return f"total residual {self.residual:.3g}, total gap {self.gap:.3g}"


def certify(
    problem: Problem,
    controls: HasControls | Tree,
    population: Any,
    *,
    inner: Minimiser | None = None,
    lanczos: int = 30,
    groups: int = 20,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    names: Sequence[str] | None = None,
    nominal: bool = False,
) -> Certificate:
    """Measures how well controls satisfy Pontryagin's minimum principle.

    The particles of one epoch are taken as one cloud: give a subsample of a population that does not fit in memory.

    Args:
        problem: the control problem.
        controls: the controls to certify; or a solution or iterate that has them.
        population: what ``mfoc.population`` takes.
        inner: minimiser for the gap; ``mfoc.minimisers.LBFGS(steps=100)`` when None.
        lanczos: products with the Hessian for the curvature.
        groups: the particles are split into this many groups, which the bootstrap resamples.
        replicates: bootstrap replicates.
        confidence: level of the intervals.
        seed: of the grouping, the bootstrap and Lanczos.
        names: names of the stages, T of them; their numbers when None.
        nominal: certify a game without its adversary. It is refused unless asked for.

    Returns:
        The certificate. Its cost is 1 + groups + (evaluations of the inner minimiser) + 2 lanczos + 5 backward passes.

    Raises:
        InvalidType, InvalidValue: arguments out of range, or particles that do not fit the problem.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_integer(1, lanczos=lanczos, groups=groups, replicates=replicates)
    check_between(0, 1, confidence=confidence)
    check_integer(0, 2**63 - 1, seed=seed)
    _check_names(names, problem.stages)
    inner = LBFGS(steps=100, history=20) if inner is None else inner
    check_minimiser(inner)
    if torch.is_inference_mode_enabled():
        raise InvalidValue("torch.inference_mode() is on and a certificate needs derivatives; leave it")
    cloud = as_population(population).cloud()
    check_flag(nominal=nominal)
    if not nominal:
        problem.check_played(cloud)
    controls = tree.detached(controls_of(controls))
    problem.validate(cloud, controls)
    sweep, generator = Sweep.at(problem, controls, cloud), torch.Generator().manual_seed(seed)
    value = float(sweep.cost.mean())
    if not math.isfinite(value):
        raise InvalidValue(f"controls: J is {value} at them, so there is nothing to certify")
    study = Study(
        memberships(len(cloud), min(groups, len(cloud)), generator, sweep.cost),
        Bootstrap(replicates, confidence, generator),
        inner,
        lanczos,
        generator,
    )
    found: dict[int, StageCertificate] = {}
    passes = 1.0
    for block, (rows, used) in sweep.each(study.block):
        passes += used * len(block.stages) / problem.stages
        for stage, row in zip(block.stages, rows, strict=False):  # a shared control has one row for all stages
            label = "shared" if not problem.per_stage else str(stage) if names is None else names[stage]
            found[stage] = StageCertificate(label, block.start.shape[1], *row)
    return Certificate([found[t] for t in sorted(found)], value, len(cloud), confidence, passes)


def certify_module(
    net: nn.Module,
    loss: Loss | nn.Module,
    data: Any,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
    running_cost: RunningCost | None = None,
    **settings: Any,
) -> Certificate:
    """The certificate of a trained network, however it was trained.

    Choose ``stages`` so that a layer and its activation are one: the Hamiltonian of a linear layer alone is affine in
    the weights, so that its gap and curvature say no more than its residual and the weight decay.

    The other arguments, and what is refused, are those of ``mfoc.from_module`` and of ``certify``.

    Args:
        net: the network.
        loss: the loss it was trained with.
        data: what ``mfoc.population`` takes, a pair (inputs, targets) for example.
        stages: names of its stages.
        running_cost: ``mfoc.weight_decay(c)``, if it was trained with weight decay c.
        **settings: of ``certify``.
    """
    problem = from_module(net, loss, stages=stages, running_cost=running_cost)
    names = [name for name, _ in named_stages(net, stages)]
    return certify(problem, problem.controls, data, **{"names": names, **settings})


def _check_names(names: Sequence[str] | None, stages: int) -> None:
    if names is None:
        return
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InvalidType(f"names is {names!r}; expected a list of strings, one for each stage")
    if len(names) != stages:
        raise InvalidValue(f"names has {len(names)} entries; the problem has {stages} stages")

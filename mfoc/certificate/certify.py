"""A certificate of optimality for controls, however they were found.

To first order it measures the stationarity residual ||dJ/du||, stage by stage E dH_t/du; to second order the smallest
eigenvalue of the Hessian of J over all controls together, and, stage by stage, that of E d2H_t/du2. The Hamiltonian gap
E H_t(u) - min_u E H_t(u) looks further, at controls that are far away.

What is necessary at a minimum of J? That the residual vanishes and the Hessian has no negative eigenvalue: always. That
u_t minimises E H_t: for one control a stage in continuous time; in discrete time where the reachable sets f_t(x, U) and
the costs are suitably convex (Halkin 1966), else not; never for a control that stages share; and not, however fine the
grid, where the control enters the diffusion. (Take f(u) = (u, -u^2/2) and Phi(a, b) = a^2 + b: J = u^2/2 has its
minimum at 0, where H = -u^2/2.) So a gap and a negative curvature of H alone condemn nothing here: where they point, J
is rolled out, and counts if it is lower. Where the control enters the diffusion, and ``Problem.noise`` says so, H
is completed by Peng's second-order adjoint; see ``mfoc.second_order``.

What it cannot see: a lower minimum that is reached neither from the starts of the search nor by changing one stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.bounds.region import Bounds
from mfoc.certificate.constrained import Constrained
from mfoc.certificate.intervals import GROUPS, Measure
from mfoc.certificate.lower import ALL, Search
from mfoc.certificate.report import Certificate, Principle, StageCertificate
from mfoc.certificate.split import Split, interact
from mfoc.certificate.study import Row, Study, generalised_hamiltonians, hamiltonians, objective
from mfoc.certificate.surroundings import Surroundings, search_starts
from mfoc.certificate.verdict import FLAT, Evidence
from mfoc.checks import check_between, check_flag, check_instance, check_integer, check_non_negative
from mfoc.deprecation import warn
from mfoc.derivatives import twice_differentiable
from mfoc.distributed import alone
from mfoc.errors import InvalidType, InvalidValue
from mfoc.minimisers import LBFGS, Minimiser, check_minimiser
from mfoc.networks import Loss, from_module
from mfoc.particles import Particles
from mfoc.pontryagin import penalised, rollout
from mfoc.populations import population as as_population
from mfoc.problem import HasControls, Problem, RunningCost, controls_for
from mfoc.second_order import NoSecondDerivative, controls_noise, fits
from mfoc.seeding import mixed_seed
from mfoc.tree import Tree

_EXACT = 100  # so few controls have all products with the Hessian of J taken, and J itself searched
_UNKNOWN = Measure(math.nan, math.nan, math.nan)


@alone()
def certify(
    problem: Problem,
    controls: HasControls | Tree,
    population: Any,
    *,
    inner: Minimiser | None = None,
    starts: int = 4,
    lanczos: int = 30,
    groups: int = GROUPS,
    replicates: int | None = None,
    confidence: float = 0.95,
    tol: float = 1e-3,
    seed: int = 0,
    names: Sequence[str] | None = None,
    nominal: bool = False,
) -> Certificate:
    """Measures how near controls are to a minimum of J, and says in a sentence what follows.

    The particles of one epoch are taken as one cloud: give a subsample of a population that does not fit in memory.
    Over ranks each of them certifies by itself, with the numbers of one process.

    Intervals are about the population that the particles are a sample of, not about the sample: the residual is freed
    of the bias of a norm, what a search finds without a fifth of the particles is judged on that fifth, Student's t.
    Where particles interact, the cloud is rolled out again without each group (a jackknife).

    Of an operation without a second derivative (``F.hardsigmoid``, ``F.embedding_bag``) there is no curvature: it is
    left out, and the certificate says why; residuals and gaps stay.

    Args:
        problem: the control problem.
        controls: the controls to certify; or a solution or iterate that has them. Of a problem with constraints on
            states the solution or iterate of ``mfoc.AugmentedLagrangian``: its multipliers are needed.
        population: what ``mfoc.population`` takes.
        inner: minimiser for the gap; ``mfoc.minimisers.LBFGS(steps=100)`` when None.
        starts: from how many controls the gap is searched: the one certified, and others around it.
        lanczos: products with a Hessian for its lowest eigenvalue.
        groups: the particles are split into this many groups, whose spread makes the intervals.
        replicates: deprecated; nothing is resampled any more.
        confidence: level of the intervals.
        tol: a residual of this share of its scale counts as zero in the verdict.
        seed: of the grouping, the starts and Lanczos.
        names: names of the stages, T of them; their numbers when None.
        nominal: certify a game without its adversary. It is refused unless asked for.

    Returns:
        The certificate; ``certificate.verdict`` is its first line.

    Raises:
        InvalidType, InvalidValue: arguments out of range, or particles that do not fit the problem.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    problem.check_potential("a certificate")
    check_integer(1, lanczos=lanczos, groups=groups, starts=starts)
    check_between(0, 1, confidence=confidence)
    check_non_negative(tol=tol)
    check_integer(0, 2**63 - 1, seed=seed)
    _check_names(names, problem.stages)
    if replicates is not None:
        warn("certify(replicates=) does nothing any more: the intervals are not resampled", stacklevel=4)
    inner = LBFGS(steps=100, history=20) if inner is None else inner
    check_minimiser(inner)
    if torch.is_inference_mode_enabled():
        raise InvalidValue("torch.inference_mode() is on and a certificate needs derivatives; leave it")
    cloud = as_population(population).cloud()
    check_flag(nominal=nominal)
    if not nominal:
        problem.check_played(cloud)
    source, controls = controls, tree.detached(controls_for(problem, controls))
    problem.validate(cloud, controls)
    with torch.no_grad():
        value = float(penalised(problem, controls, rollout(problem, controls, cloud).cost.mean()))
    if not math.isfinite(value):
        raise InvalidValue(f"controls: J is {value} at them, so there is nothing to certify")
    complete, held = problem.per_particle, None
    if problem.constrained:
        held = Constrained.of(problem, source, controls, cloud, seed)
        problem, cloud, complete = (
            held.lagrangian.augmented(),
            held.lagrangian.particles(cloud),
            complete or held.complete,
        )
    made = _Certifying(problem, controls, cloud, inner, starts, lanczos, groups, confidence, tol, seed, names, complete)
    with twice_differentiable():
        found = made.certificate(value)
    return found if held is None else held.judged(found, tol)


@dataclass(frozen=True, eq=False)
class _Certifying:
    """A certificate in the making; see ``certify``."""

    problem: Problem
    controls: Tree
    cloud: Particles
    inner: Minimiser
    starts: int
    lanczos: int
    groups: int
    confidence: float
    tol: float
    seed: int
    names: Sequence[str] | None
    complete: bool

    def certificate(self, value: float) -> Certificate:
        generator = torch.Generator().manual_seed(self.seed)
        around = Surroundings.of(self.problem, self.controls, self.cloud, generator)
        # A law may be at rest at the controls themselves.
        interacting = any(interact(self.problem, u, self.cloud) for u in (self.controls, around.reference))
        split = Split.of(self.cloud, self.groups, generator, interacting=interacting, complete=self.complete)
        principle = self._principle(interacting)
        study = Study(split, self.problem.stages, self.inner, self._starts, self.lanczos, generator, self.confidence)
        total, passes = self._of_j(principle, study)
        rows, more = self._by_stage(principle, study, total)
        improvement, where, crest = self._lower(principle, split, total, rows)
        stages = [self._stage(t, rows[t], around) for t in sorted(rows)]
        scale = math.hypot(*(stage.scale for stage in stages))
        below, main = total.curvature.value - total.bound, self._main(total.direction)
        rounding = math.sqrt(torch.finfo(total.slopes.dtype).eps)
        verdict = Evidence(
            stages, len(self.cloud), total.residual, scale, total.curvature, total.missing, below, total.largest, main,
            improvement, where, crest, self.tol, rounding,
        ).verdict()  # fmt: skip
        return Certificate(
            stages, value, len(self.cloud), self.confidence, passes + more + 6, total.residual, scale,
            total.curvature, total.error, total.bound, total.missing, improvement, where, principle, interacting,
            verdict, self.complete,
        )  # fmt: skip

    def _of_j(self, principle: Principle, study: Study) -> tuple[Row, float]:
        """What is found of J over all controls together; J itself is searched where it is cheap, or all there is."""
        count = sum(leaf.numel() for leaf in tree.tensors(self.controls))
        study = replace(study, lanczos=max(self.lanczos, min(count, _EXACT)))
        if count > _EXACT and principle is not Principle.TIED:
            study = replace(study, inner=None)
        rows, passes = study.rows(objective(self.problem, self.controls))
        (total,) = rows.values()
        return total, passes

    def _lower(self, principle: Principle, split: Split, total: Row, rows: dict[int, Row]) -> tuple[Measure, str, bool]:
        """The most that J falls at what was found, the stage, and whether J falls on both sides of the controls."""
        search = Search(self.problem, self.controls, split, self.confidence)
        falls, crest = Measure(0.0, 0.0, 0.0), False
        if total.curvature.value - total.bound < FLAT * total.largest:
            falls, crest = search.along(total)
        by_stage, at = search.best({} if principle is Principle.TIED else rows)
        everywhere = search.best({ALL: total})[0]
        found = [(by_stage, self._label(at)), (everywhere, "all"), (falls, "")]
        return *max(found, key=lambda pair: pair[0].value), crest  # the first of equals

    def _principle(self, interacting: bool) -> Principle:
        if not self.problem.per_stage:
            return Principle.TIED
        if not controls_noise(self.problem, self.controls, self.cloud):
            return Principle.HAMILTONIAN
        return Principle.DIFFUSION if fits(self.cloud) and not interacting else Principle.WIDE_DIFFUSION

    def _by_stage(self, principle: Principle, study: Study, total: Row) -> tuple[dict[int, Row], float]:
        if principle is Principle.TIED:
            return {0: total}, 0.0
        note = "gap and curvature do not apply: the control enters the diffusion"
        if principle is Principle.DIFFUSION:
            try:
                return study.rows(generalised_hamiltonians(self.problem, self.controls))
            except NoSecondDerivative as error:
                note = f"gap and curvature not available: {error}"
        if principle is Principle.HAMILTONIAN:
            return study.rows(hamiltonians(self.problem, self.controls))
        rows, passes = replace(study, inner=None).rows(hamiltonians(self.problem, self.controls))
        held = {"gap": _UNKNOWN, "curvature": _UNKNOWN, "error": math.nan, "bound": math.nan, "note": note}
        return {t: replace(row, **held) for t, row in rows.items()}, passes  # type: ignore[arg-type]

    def _starts(self, stage: int, row: Tensor) -> Tensor:
        initial = tree.ravel(self.problem.controls).detach().to(row)
        if len(initial) != len(row):  # that of one stage
            initial = tree.ravel(self.problem.controls[stage]).detach().to(row)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, stage))
        return search_starts(row, None if torch.equal(initial, row) else initial, self.starts - 1, generator)

    def _stage(self, t: int, row: Row, around: Surroundings) -> StageCertificate:
        own = float(tree.length(row.slopes, 1).double().square().mean().sqrt())
        measures = (row.residual, max(around.far[t], own), row.gap, row.curvature, row.error, row.bound)
        return StageCertificate(self._label(t), row.slopes.shape[1], *measures, around.flat(t, own), row.note)

    def _label(self, t: int) -> str:
        if not self.problem.per_stage:
            return "shared"
        if t == ALL:
            return ""
        return str(t) if self.names is None else self.names[t]

    def _main(self, direction: Tensor | None) -> str:
        """The stages that hold most of a direction, where not all do."""
        if direction is None or not self.problem.per_stage:
            return ""
        sizes = [sum(leaf.numel() for leaf in tree.tensors(u)) for u in self.controls]
        shares = [float(part.square().sum()) for part in torch.split(direction, sizes)]
        order = sorted(range(len(shares)), key=lambda t: -shares[t])
        held = [t for t in order if shares[t] > 0.05]
        named = [self._label(t) for t in sorted(held[:3])]
        return "" if len(held) > 3 or not named else f"stage{'s' * (len(named) > 1)} {', '.join(named)}"


def certify_module(
    net: nn.Module,
    loss: Loss | nn.Module,
    data: Any,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
    running_cost: RunningCost | None = None,
    bounds: Bounds = None,
    tied: bool = False,
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
        bounds: where its weights had to lie; weights outside are refused.
        tied: its stages share weights, as an embedding and the head it is tied to.
        **settings: of ``certify``.
    """
    make = partial(from_module, net, loss, stages=stages, running_cost=running_cost, tied=tied)
    problem = make()
    weights = problem.controls
    if bounds is not None:
        problem = make(bounds=bounds)
    return certify(problem, weights, data, **{"names": list(problem.names), **settings})


def _check_names(names: Sequence[str] | None, stages: int) -> None:
    if names is None:
        return
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InvalidType(f"names is {names!r}; expected a list of strings, one for each stage")
    if len(names) != stages:
        raise InvalidValue(f"names has {len(names)} entries; the problem has {stages} stages")

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

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import _tree
from mfoc._blocks import Block, each_block
from mfoc._errors import InvalidType, InvalidValue
from mfoc._lanczos import Lowest, lowest_eigenpair
from mfoc._staging import named_stages
from mfoc._tree import Tree
from mfoc.inner import LBFGS, Inner, check_inner
from mfoc.networks import Loss, from_module
from mfoc.pontryagin import adjoint, rollout
from mfoc.population import population as as_population
from mfoc.problem import Particles, Problem, RunningCost, per_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measure:
    """One quantity at one stage.

    Attributes:
        value: its value on the particles given.
        low, high: bootstrap interval over groups of particles, stretched to hold ``value``. For the residual: what it
            would be on other samples of as many particles, so that at a minimiser of this sample ``high`` is its
            sampling noise. For gap and curvature: of E [H(u) - H(v)] and of w' E d2H/du2 w, at the minimiser v and
            the eigenvector w of this sample, which understates the spread where they depend much on the sample.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:9.2e} [{self.low:9.2e}, {self.high:9.2e}]"


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


@dataclass(frozen=True)
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

    def __str__(self) -> str:
        width = max([5, *(len(stage.name) for stage in self.stages)])
        level = f"{100 * self.confidence:.0f}%"
        lines = [
            f"Pontryagin certificate on {self.particles} particles, J = {self.value:.6g} "
            f"({level} bootstrap intervals; {self.backward_passes:.0f} backward passes)",
            f"{'stage':{width}s}  {'controls':>8s}  {'residual ||E dH/du||':^32s}  {'gap E H - min E H':^32s}  "
            f"{'curvature min eig E d2H/du2':^32s}",
        ]
        lines += [
            f"{s.name:{width}s}  {s.parameters:8d}  {s.residual!s:32s}  {s.gap!s:32s}  {s.curvature!s:32s}"
            + (f"  (± {s.curvature_error:.0e})" if s.curvature_error > 0.05 * abs(s.curvature.value) else "")
            for s in self.stages
        ]
        return "\n".join([*lines, f"total residual {self.residual:.3g}, total gap {self.gap:.3g}"])


def certify(
    problem: Problem,
    controls: Tree,
    population: Any,
    *,
    inner: Inner | None = None,
    lanczos: int = 30,
    groups: int = 20,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Certificate:
    """Measures how well controls satisfy Pontryagin's minimum principle.

    The particles of one epoch are taken as one cloud: give a subsample of a population that does not fit in memory.

    Args:
        problem: the control problem.
        controls: the controls to certify.
        population: what ``mfoc.population`` takes.
        inner: minimiser for the gap; ``mfoc.inner.LBFGS(steps=100)`` when None.
        lanczos: products with the Hessian for the curvature.
        groups: the particles are split into this many groups, which the bootstrap resamples.
        replicates: bootstrap replicates.
        confidence: level of the intervals.
        seed: of the grouping, the bootstrap and Lanczos.
        names: names of the stages, T of them; their numbers when None.

    Returns:
        The certificate. Its cost is 1 + groups + (evaluations of the inner minimiser) + 2 lanczos + 5 backward passes.

    Raises:
        InvalidType, InvalidValue: arguments out of range, or particles that do not fit the problem.
    """
    _check_settings(problem, lanczos, groups, replicates, confidence, names)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidValue(f"seed is {seed!r}; expected a non-negative integer")
    if inner is not None:
        check_inner(inner)
    if torch.is_inference_mode_enabled():
        raise InvalidValue("torch.inference_mode() is on and a certificate needs derivatives; leave it")
    cloud = _whole(as_population(population).epoch())
    problem.validate(cloud, controls)
    controls = _tree.detached(controls)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        trajectory = rollout(problem, controls, cloud)
    value = float(trajectory.cost.mean())
    if not math.isfinite(value):
        raise InvalidValue(f"controls: J is {value} at them, so there is nothing to certify")
    costates = adjoint(problem, controls, trajectory, cloud)[0]
    study = _Study(
        _memberships(len(cloud), min(groups, len(cloud)), generator, trajectory.cost),
        _Bootstrap(replicates, confidence, generator),
        LBFGS(steps=100, history=20) if inner is None else inner,
        lanczos,
        generator,
    )
    found: dict[int, StageCertificate] = {}
    passes = 1.0
    for block, (rows, used) in each_block(study.block, problem, controls, trajectory.states, costates, cloud.data):
        passes += used * len(block.stages) / problem.stages
        for stage, row in zip(block.stages, rows, strict=False):  # a shared control has one row for all stages
            label = "shared" if problem.schedule is not per_stage else str(stage) if names is None else names[stage]
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

    Args:
        net: see ``mfoc.from_module``.
        loss: the loss it was trained with.
        data: what ``mfoc.population`` takes, a pair (inputs, targets) for example.
        stages: see ``mfoc.from_module``.
        running_cost: ``mfoc.weight_decay(c)``, if it was trained with weight decay c.
        **settings: of ``certify``.

    Raises:
        InvalidType, InvalidValue: as ``mfoc.from_module`` and ``certify``.
    """
    problem = from_module(net, loss, stages=stages, running_cost=running_cost)
    names = [name for name, _ in named_stages(net, stages)]
    return certify(problem, problem.controls, data, **{"names": names, **settings})


@dataclass(frozen=True)
class _Bootstrap:
    """Resamples groups of particles."""

    replicates: int
    confidence: float
    generator: torch.Generator

    def weights(self, groups: int, like: Tensor) -> Tensor:
        """How often each group is drawn in each replicate, over ``groups``: ``[replicates, groups]``."""
        shape = (self.replicates, groups)
        drawn = torch.randint(groups, shape, generator=self.generator, device="cpu")
        ones = torch.ones(shape, device="cpu")
        return torch.zeros(shape, device="cpu").scatter_add_(1, drawn, ones).to(like) / groups

    def measure(self, value: Tensor, replicates: Tensor) -> Measure:
        tail = (1 - self.confidence) / 2
        low, high = torch.quantile(
            replicates.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64).to(value.device)
        )
        return Measure(float(value), min(float(low), float(value)), max(float(high), float(value)))


Row = tuple[Measure, Measure, Measure, float]


@dataclass(frozen=True)
class _Study:
    """Measures one block after another."""

    members: Tensor  # [K, N], row k averages over group k
    bootstrap: _Bootstrap
    inner: Inner
    lanczos: int
    generator: torch.Generator

    @torch.enable_grad()
    def block(self, block: Block) -> tuple[list[Row], float]:
        """The measures of each row of a block, and the backward passes they took."""
        weights = self.bootstrap.weights(len(self.members), block.start)
        residuals = self._residuals(block, weights)
        lowest = self._lowest(block)
        curvatures = self._curvatures(block, weights, lowest)
        gaps, evaluations = self._gaps(block, weights, lowest)
        rows = list(zip(residuals, gaps, curvatures, lowest.error.tolist(), strict=True))
        return rows, len(self.members) + evaluations + 2 * lowest.products + 5

    def _residuals(self, block: Block, weights: Tensor) -> list[Measure]:
        point = block.start.clone().requires_grad_()
        with torch.enable_grad():
            means = block.per_particle(point) @ self.members.mT  # [G, K]
        last = means.shape[1] - 1
        slopes = torch.stack(
            [_grad(means[:, k].sum(), point, retain_graph=k < last) for k in range(means.shape[1])], 1
        )  # [G, K, n]
        gram = slopes @ slopes.mT
        sizes = self._sizes()
        return [
            self.bootstrap.measure(_length(g, sizes[None])[0], _length(g, _resampled(weights, sizes))) for g in gram
        ]

    def _gaps(self, block: Block, weights: Tensor, lowest: Lowest) -> tuple[list[Measure], int]:
        # From a saddle or a maximum of H no slope leads away: start a little down the direction of negative curvature.
        start = block.start
        length = 1e-3 * (1 + start.norm(dim=1, keepdim=True)) * (lowest.value < -lowest.error)[:, None]
        uphill = (block.evaluate(start)[1] * lowest.vector).sum(1, keepdim=True) > 0
        found = self.inner.minimise(block.evaluate, start + torch.where(uphill, -length, length) * lowest.vector)
        sizes = self._sizes()
        with torch.no_grad():
            before = block.per_particle(start) @ self.members.mT  # [G, K]
            fall = before - block.per_particle(found.point) @ self.members.mT
        gaps = []
        for row, level, endless in zip(fall, (before * sizes).sum(1), found.unbounded.tolist(), strict=True):
            value = (row * sizes).sum()
            rounding = math.sqrt(torch.finfo(value.dtype).eps) * (1 + level.abs())
            if endless:
                gaps.append(Measure(math.inf, math.inf, math.inf))
            elif not value.isfinite() or value < -rounding:
                logger.warning("the inner minimiser ended above its start, or not at a number: the gap is not known")
                gaps.append(Measure(math.nan, math.nan, math.nan))
            else:
                gaps.append(self.bootstrap.measure(value.clamp_min(0), _resampled(weights, sizes) @ row))
        return gaps, found.evaluations

    def _lowest(self, block: Block) -> Lowest:
        point = block.start.clone().requires_grad_()
        with torch.enable_grad():
            slope = _grad(block.per_particle(point).mean(1).sum(), point, create_graph=True)
        product = _hessian_product(slope, point)
        return lowest_eigenpair(product, block.start, iterations=self.lanczos, generator=self.generator)

    def _curvatures(self, block: Block, weights: Tensor, lowest: Lowest) -> list[Measure]:
        by_group = self._second_derivatives(block, lowest.vector)  # [G, K]
        sizes = self._sizes()
        return [
            self.bootstrap.measure(value, _resampled(weights, sizes) @ row)
            for value, row in zip(lowest.value, by_group, strict=True)
        ]

    def _second_derivatives(self, block: Block, direction: Tensor) -> Tensor:
        """V' E_k d2H/du2 v for every row and every group k: ``[G, K]``, by differentiating in the groups' weights."""
        rows, groups = len(block.start), len(self.members)
        point = block.start.clone().requires_grad_()
        share = torch.ones(rows, groups, dtype=point.dtype, device=point.device, requires_grad=True)
        with torch.enable_grad():
            total = (block.per_particle(point) @ self.members.mT * share).sum()
            first = (_grad(total, point, create_graph=True) * direction).sum()
            second = (_grad(first, point, create_graph=True) * direction).sum()
            return _grad(second, share)

    def _sizes(self) -> Tensor:
        """The share of the particles in each group ``[K]``."""
        counts = (self.members > 0).sum(1).to(self.members)
        return counts / counts.sum()


def _grad(output: Tensor, point: Tensor, *, retain_graph: bool | None = None, create_graph: bool = False) -> Tensor:
    """A derivative that is zero where there is no dependence (an H that is linear in u has no second one)."""
    if not output.requires_grad:
        return torch.zeros_like(point)
    return torch.autograd.grad(
        output, point, retain_graph=retain_graph, create_graph=create_graph, materialize_grads=True
    )[0]


def _hessian_product(slope: Tensor, point: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: _grad((slope * v).sum(), point, retain_graph=True)


def _resampled(weights: Tensor, sizes: Tensor) -> Tensor:
    """Weights of the groups in each replicate, by the particles they hold: ``[replicates, K]``."""
    scaled = weights * sizes
    return scaled / scaled.sum(1, keepdim=True)


def _length(gram: Tensor, weights: Tensor) -> Tensor:
    """||sum_k w_k g_k|| from the Gram matrix of the g_k, for each row of weights."""
    return torch.einsum("bk,kl,bl->b", weights, gram, weights).clamp_min(0).sqrt()


def _memberships(particles: int, groups: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """A random partition of the particles as averaging rows ``[K, N]``."""
    group = torch.arange(particles, device="cpu") % groups
    order = torch.randperm(particles, generator=generator, device="cpu")
    member = torch.nn.functional.one_hot(group[order], groups).to(like).mT
    return member / member.sum(1, keepdim=True)


def _whole(batches: Iterable[Particles]) -> Particles:
    """All batches as one cloud."""
    clouds = list(batches)
    if len(clouds) == 1:
        return clouds[0]
    state = _tree.map(lambda *leaves: torch.cat(leaves), *(cloud.state for cloud in clouds))
    data = None
    if clouds[0].data is not None:
        data = _tree.map(lambda *leaves: torch.cat(leaves), *(cloud.data for cloud in clouds))
    return Particles(state, data)


def _check_settings(
    problem: Any, lanczos: int, groups: int, replicates: int, confidence: float, names: Sequence[str] | None
) -> None:
    if not isinstance(problem, Problem):
        raise InvalidType(f"problem is a {type(problem).__name__}; expected mfoc.Problem")
    for name, count in (("lanczos", lanczos), ("groups", groups), ("replicates", replicates)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidValue(f"{name} is {count!r}; expected a positive integer")
    if not isinstance(confidence, float) or not 0 < confidence < 1:
        raise InvalidValue(f"confidence is {confidence!r}; expected a level between 0 and 1")
    if names is None:
        return
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InvalidType(f"names is {names!r}; expected a list of strings, one for each stage")
    if len(names) != problem.stages:
        raise InvalidValue(f"names has {len(names)} entries; the problem has {problem.stages} stages")

"""The mean-field control problem.

    minimise   J(u) = E_(x0,z)~rho [ sum_t L_t(x_t, u_t, z) + Phi(x_T, z) ]
    subject to x_(t+1) = f_t(x_t, u_t, z),   t = 0..T-1

after W. E, J. Han, Q. Li (2019), "A mean-field optimal control formulation of deep learning", eq. (3),
in discrete time. The control is shared by the population; the population is carried by particles.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from torch import Tensor, nn

from mfoc import printing, tree
from mfoc.bounds import Region, region
from mfoc.bounds.region import Bounds
from mfoc.checks import (
    check_callable,
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_plain,
    check_signature,
    is_plain,
    kind_of,
)
from mfoc.constraints import Constraint, Terms, listed
from mfoc.errors import InvalidType, InvalidValue
from mfoc.particles import Particles
from mfoc.tree import Tree
from mfoc.validation import check_cost, check_leaves, validate  # noqa: F401  (check_cost was public here)

if TYPE_CHECKING:  # with a default, so that a bare ``Problem`` is one of any controls
    from typing_extensions import TypeVar

    Controls = TypeVar("Controls", default=Any)
else:
    from typing import TypeVar

    Controls = TypeVar("Controls")

Dynamics = Callable[[int, Tree, Tree, Tree], Tree]
RunningCost = Callable[[int, Tree, Tree, Tree], Tensor]
TerminalCost = Callable[[Tree, Tree], Tensor]
Schedule = Callable[[Tree, int], Tree]


class Averaged:
    """A terminal cost that knows its own mean: one says so by this class, as ``mean`` may be anything elsewhere."""

    def mean(self, x: Tree, z: Tree) -> Tensor | None:
        """The mean over the particles, but for rounding that of the costs; None where it has to be taken of them."""
        raise NotImplementedError

    def weight(self, x: Tree, z: Tree) -> float | Tensor | None:
        """What that mean divides by, so that the means of parts of the particles make that of all; None: not known."""
        return None


STAGE = ("t", "x", "u", "z")  # what dynamics and running costs are called with


def per_stage(controls: Tree, t: int) -> Tree:
    """Schedule of a control of its own at each stage: ``controls`` is a list of T pytrees."""
    return controls[t]


def tied(controls: Tree, t: int) -> Tree:
    """Schedule of one control shared by all stages: ``controls`` is one pytree."""
    return controls


class HasControls(Generic[Controls]):
    """What controls can be taken from: a problem (its initial guess), an iterate, a solution."""

    controls: Controls


def controls_of(source: HasControls[Controls] | Controls) -> Controls:
    """The controls of a solution or an iterate, the initial ones of a problem, or the controls themselves.

    Raises:
        InvalidType: it is none of these.
    """
    if isinstance(source, HasControls):
        return source.controls
    if isinstance(source, list | tuple | dict | Tensor) or not tree.is_leaf(source):
        return source  # a bare TypeVar is not narrowed
    raise InvalidType(f"solution is {kind_of(source)}; expected what solve() returned, an iterate or controls")


def controls_for(problem: Problem[Any], source: HasControls[Tree] | Tree) -> Tree:
    """The controls of a solution, an iterate or a problem, or the controls themselves, which fit a problem.

    Raises:
        InvalidType: it is none of these, or a leaf is no plain tensor.
        InvalidValue: they are shaped otherwise than the problem's own.
    """
    controls = controls_of(source)
    problem.check_stages(controls)
    first = int(problem.per_particle)  # the axis from which on shapes are the same, whatever the number of particles
    given, own = tree.leaves(controls), tree.leaves(problem.controls)
    if len(given) == len(own) and all(
        is_plain(leaf) and leaf.shape[first:] == mine.shape[first:] for leaf, mine in zip(given, own, strict=True)
    ):
        return controls
    named = tree.named_leaves(controls, "controls")
    for name, leaf in named:
        check_plain("a control, a floating-point tensor", **{name: leaf})
    if len(named) != len(own):
        raise InvalidValue(f"controls holds {len(named)} tensors; those of the problem are {len(own)}")
    for (name, leaf), mine in zip(named, own, strict=True):
        if leaf.shape[first:] != mine.shape[first:]:
            raise InvalidValue(f"{name} has shape {tuple(leaf.shape)}; the problem's own has {tuple(mine.shape)}")
    return controls


@dataclass(frozen=True, eq=False)
class Problem(HasControls[Controls]):
    """A discrete-time, batched, pure mean-field control problem.

    Attributes:
        dynamics: ``dynamics(t, x, u, z) -> x_next``. x is the whole cloud ``[N, ...]``, so its empirical law may be
            used: interacting problems are not a special case. Name it, ``mfoc.mean(x)``: it is then that of the
            population however many ranks share it. (``x.mean(0)`` is the same on one rank.)
        terminal_cost: ``terminal_cost(x, z) -> [N]``.
        controls: the initial guess: a list of T pytrees (``per_stage``) or one pytree (``tied``).
        running_cost: ``running_cost(t, x, u, z) -> [N]``, or None.
        horizon: number of stages T; needed unless the schedule is ``per_stage``.
        schedule: ``schedule(controls, t) -> u_t``.
        kind: ``kind(t)`` names the function that stage t computes. Stages of equal kind must be the same
            function of (x, u, z), so that a solver may evaluate them in one batch. None: no two are known alike.
        affine: ``affine(t)`` says that f_t is affine in x (a linear or convolutional layer), so that <p, f_t> has the
            same gradient in x everywhere. None: no stage is known to be.
        noise: ``noise(t, x, u, z) -> [N, d]``, the part of f_t that is noise, sigma dW. Where the control enters it, an
            optimal control need not minimise H (see ``mfoc.certify``). None: there is none, or it is not known.
            ``mfoc.continuous`` sets it.
        interacting: what the law is of, where the particles interact and are taken in batches. None: of the whole
            population, so that batches are refused. "batch": each batch is a population of its own, J is the mean over
            batches of their costs, and depends on the batch size (as training with batch norm does). A batch is all
            ranks' share of it together: over ranks the interaction must be written with ``mfoc.mean``.
        bounds: where controls may lie: ``mfoc.Box(low, high)``, ``Simplex()``, ``Ball(radius, "l2")``, or the penalty
            ``L1(weight)``, for every leaf; or a tree of them shaped as the controls (or as one stage's) as far as it
            goes, in which None and missing keys are free; or a rule ``(name, leaf) -> set or None``. None: all free.
        per_particle: each particle has a control of its own, row i of every leaf ``[N, ...]``; a class of control by
            itself. False: what dynamics receive as u is shared by the cloud.
        terminal: ``mfoc.Equality(c)`` or ``mfoc.Inequality(c)`` of ``c(x, z) -> [N, k]`` at the end, or a list of them.
        path: the same of ``c(t, x, u, z)`` at every stage. ``mfoc.AugmentedLagrangian(solver)`` meets constraints.
        region: what ``bounds`` says of each leaf; None where all are free.

    Raises:
        InvalidType: something is not callable, or a control leaf is not a floating-point tensor.
        InvalidValue: wrong length or horizon, no control at all, non-finite initial controls, mixed devices or dtypes,
            another word for ``interacting``, or bounds that do not fit the controls or are not kept by them.
    """

    dynamics: Dynamics
    terminal_cost: TerminalCost
    controls: Controls
    _: KW_ONLY
    running_cost: RunningCost | None = None
    horizon: int | None = None
    schedule: Schedule = per_stage
    kind: Callable[[int], Hashable] | None = None
    affine: Callable[[int], bool] | None = None
    noise: Callable[[int, Tree, Tree, Tree], Tensor] | None = None
    interacting: str | None = None
    bounds: Bounds = None
    per_particle: bool = False
    terminal: Terms = None
    path: Terms = None
    region: Region | None = field(init=False, repr=False, default=None)

    potential: ClassVar[bool] = True  # whether E dH/du is J's gradient

    def __post_init__(self) -> None:
        check_callable("a function", dynamics=self.dynamics, terminal_cost=self.terminal_cost, schedule=self.schedule)
        check_callable("a function", optional=True, running_cost=self.running_cost, kind=self.kind, affine=self.affine)
        check_callable("a function", optional=True, noise=self.noise)
        check_signature(STAGE, optional=True, dynamics=self.dynamics, running_cost=self.running_cost, noise=self.noise)
        check_signature(("x", "z"), terminal_cost=self.terminal_cost)
        check_signature(("controls", "t"), synonyms={"u": "controls"}, schedule=self.schedule)
        check_signature(("t",), optional=True, kind=self.kind, affine=self.affine)
        if self.interacting is not None:
            check_choice("batch", interacting=self.interacting)
        check_flag(per_particle=self.per_particle)
        listed(self.terminal, "terminal", ("x", "z"))
        listed(self.path, "path", STAGE)
        object.__setattr__(self, "horizon", self._horizon())
        if self.bounds is not None:
            own = region(self.bounds, self.controls, lead=int(self.per_particle), per_stage=self.per_stage)
            object.__setattr__(self, "region", own)
        self.check_controls(self.controls)

    def _horizon(self) -> int:
        horizon = self.horizon
        check_integer(1, horizon=horizon, optional=True)
        if self.per_stage:
            if isinstance(self.controls, nn.Module):
                raise InvalidType(
                    f"controls is {kind_of(self.controls)}, a module; expected its parameters as tensors. "
                    "mfoc.from_module(net, loss) makes a problem of a network"
                )
            if isinstance(self.controls, Iterator):
                raise InvalidType(
                    f"controls is {kind_of(self.controls)}, which runs dry; expected a list: list(controls)"
                )
            if not isinstance(self.controls, list | tuple):
                raise InvalidType(
                    f"controls is {kind_of(self.controls)}; a per-stage schedule needs a list of T pytrees "
                    "(for one control shared by all stages pass schedule=mfoc.tied and horizon=T)"
                )
            stages = len(self.controls)
            if horizon is not None and horizon != stages:
                raise InvalidValue(f"controls has {stages} stages and horizon is {horizon}; they must agree")
            if not stages:
                raise InvalidValue("controls is empty; expected a list of T >= 1 pytrees")
            return stages
        if horizon is None:
            raise InvalidValue("horizon is missing; this schedule needs the number of stages, horizon=T")
        return horizon

    def __repr__(self) -> str:
        control = "a control of its own each" if self.per_stage else "one control"
        said = {
            "running cost": self.running_cost is not None,
            "per particle": self.per_particle,
            "bounds": self.region is not None,
            "constraints": self.constrained,
        }
        parts = [printing.sizes(self.controls), *(name for name, holds in said.items() if holds)]
        return f"{type(self).__name__}({self.stages} stage{'s' * (self.stages != 1)}, {control}: {', '.join(parts)})"

    @property
    def stages(self) -> int:
        """The number of stages T."""
        assert self.horizon is not None
        return self.horizon

    @property
    def per_stage(self) -> bool:
        """Whether each stage has a control of its own: ``controls`` is then a list of T pytrees."""
        return self.schedule is per_stage

    @cached_property
    def terminal_constraints(self) -> tuple[Constraint, ...]:
        """The constraints on the last state."""
        return listed(self.terminal, "terminal", ("x", "z"))

    @cached_property
    def path_constraints(self) -> tuple[Constraint, ...]:
        """The constraints at every stage."""
        return listed(self.path, "path", STAGE)

    @property
    def constrained(self) -> bool:
        """Whether there are constraints on states, which ``mfoc.AugmentedLagrangian`` meets."""
        return bool(self.terminal_constraints or self.path_constraints)

    def check_stages(self, controls: Tree) -> None:
        """Refuses controls for another number of stages, where each has a control of its own."""
        if not self.per_stage:
            return
        if not isinstance(controls, list | tuple):
            raise InvalidType(f"controls is {kind_of(controls)}; expected a list of {self.stages} pytrees")
        if len(controls) != self.stages:
            raise InvalidValue(f"controls has {len(controls)} stages; the problem has {self.stages}")

    def check_controls(self, controls: Tree) -> None:
        """Refuses controls that this problem cannot run with.

        Raises:
            InvalidType: a leaf is not a floating-point tensor.
            InvalidValue: wrong number of stages, no control, non-finite values, mixed devices or dtypes.
        """
        self.check_stages(controls)
        named = tree.named_leaves(controls, "controls")
        if not named:
            raise InvalidValue("controls holds no tensor; there is nothing to optimise")
        check_leaves(named, per_particle=self.per_particle)
        if self.region is not None:
            self.region.check(controls)

    def projected(self, controls: Tree, gradient: Tree) -> Tree:
        """The gradient; the projected one where controls are bounded. Zero where the controls are stationary."""
        return gradient if self.region is None else self.region.stationary(controls, gradient)

    def limits(self, t: int) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the flattened control of stage t ``[m]`` (``[N, m]`` per particle), of a ``Box``.

        Raises:
            InvalidValue: a bound is of another kind, or the stages have no controls of their own.
        """
        if not self.per_stage:
            raise InvalidValue("the stages share their control; limits(t) are those of a stage")
        held = [tree.leaves(stage) for stage in self.controls]  # type: ignore[attr-defined]
        first = sum(map(len, held[:t]))
        sets = (None,) * len(held[t]) if self.region is None else self.region.sets[first : first + len(held[t])]
        return Region(sets, int(self.per_particle)).limits(held[t])

    def validate(self, particles: Particles, controls: Tree | None = None) -> None:
        """Runs the problem once, stage by stage, and explains what does not fit.

        Each function is then called twice more on a few of the particles: a pure one says the same again. Whether the
        controls reach the costs at all is asked by ``solve``.

        Args:
            particles: a cloud the problem is to be solved on.
            controls: the controls to run with; the initial guess when None.

        Raises:
            InvalidType: a stage returns something that is not a tree of tensors.
            InvalidValue: a stage fails, loses particles or returns a cost that is not ``[N]``; or a function is not
                pure: it writes into its arguments, draws random numbers, or says something else the second time.
        """
        check_instance(Particles, "mfoc.Particles", particles=particles)
        controls = self.controls if controls is None else controls_of(controls)
        self.check_controls(controls)
        validate(self, particles, controls)

    def check_played(self, particles: Particles) -> None:
        """Refuses particles on which this problem's adversary, if it has one, does not play; see ``mfoc.Game``."""

    def check_potential(self, what: str) -> None:
        """Refuses ``what``, which compares values of J, where E dH/du is not J's gradient; see ``mfoc.Equilibrium``."""

    def rebuilt(self, change: Callable[[Problem], Problem]) -> Problem:
        """What ``change`` makes of this problem; where this is a mean-field game, the game of what it makes of its own.

        As ``problem.rebuilt(lambda own: dataclasses.replace(own, ...))``.
        """
        return change(self)

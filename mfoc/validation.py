"""Runs the functions of a problem once, stage by stage, and explains what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import kind_of
from mfoc.distributed import active, any_rank
from mfoc.errors import InvalidType, InvalidValue, MfocError
from mfoc.particles import Particles
from mfoc.seeding import watched
from mfoc.tree import Tree

if TYPE_CHECKING:
    from mfoc.problem import Problem

Pure = Callable[..., AbstractContextManager[None]]  # (what, arguments) -> a watch over a call

_FEW = 4  # particles on which a stage is evaluated a second time


def check_leaves(named: Sequence[tuple[str, Tensor]], *, per_particle: bool) -> None:
    """Refuses leaves of controls that are no finite floating-point numbers, or do not fit one another."""
    first_name, first = named[0]
    for name, leaf in named:
        if not leaf.is_floating_point():
            raise InvalidType(f"{name} has dtype {leaf.dtype}; controls must be floating point")
        if per_particle and (not leaf.dim() or len(leaf) != len(first)):
            raise InvalidValue(
                f"{name} has shape {tuple(leaf.shape)}; with per_particle=True row i of every leaf is particle i's"
                f", [{len(first) if first.dim() else 'N'}, ...]"
            )
        if leaf.device != first.device or leaf.dtype != first.dtype:
            raise InvalidValue(
                f"{name} is {leaf.dtype} on {leaf.device} and {first_name} is {first.dtype} on {first.device}; "
                "all controls need one dtype and one device"
            )
    # One fused reduction over all leaves: only when it fails is the culprit looked for.
    if not torch.stack([leaf.detach().sum() for _, leaf in named]).isfinite().all():
        for name, leaf in named:
            if not leaf.isfinite().all():
                raise InvalidValue(f"{name} holds NaN or infinite values; start from finite controls")


def validate(problem: Problem, particles: Particles, controls: Tree) -> None:
    """See ``Problem.validate``."""
    _check_agreement(problem, particles, controls)
    with torch.no_grad():
        drawn = watched()
        _run(problem, particles, controls, _still)
        if drawn():  # by which of them is asked only then: the state of a generator is large
            _run(problem, particles, controls, _undrawn)
            raise InvalidValue(_draws("one of dynamics and costs"))
        on_few(lambda few: _check_repeatable(problem, few, controls), particles)


def _run(problem: Problem, particles: Particles, controls: Tree, pure: Pure) -> None:
    x, z, n = particles.state, particles.data, len(particles)
    for t in range(problem.stages):
        with pure(f"stage {t}: the schedule", controls):
            u = _call(f"stage {t}: the schedule", problem.schedule, controls, t)
        if problem.running_cost is not None:
            what = f"stage {t}: running_cost"
            with pure(what, [x, u, z]), _explained(what, x, z):
                check_cost(problem.running_cost(t, x, u, z), n, what)
        for constraint in problem.path_constraints:
            what = f"stage {t}: a path constraint"
            with pure(what, [x, u, z]), _explained(what, x, z):
                constraint.of(n, what, t, x, u, z)
        came = tree.describe(x)
        with pure(f"stage {t}: dynamics", [x, u, z]):
            with _explained(f"stage {t}: dynamics (state {came}, control {tree.describe(u)})", x, z):
                moved = problem.dynamics(t, x, u, z)
            _check_state(moved, n, f"stage {t}: dynamics (given a state {came})")
        x = moved
    given = f"terminal_cost (state {tree.describe(x)}, data {tree.describe(z)})"
    with pure("terminal_cost", [x, z]), _explained(given, x, z):
        check_cost(problem.terminal_cost(x, z), n, "terminal_cost")
    for constraint in problem.terminal_constraints:
        with pure("a terminal constraint", [x, z]), _explained("a terminal constraint", x, z):
            constraint.of(n, "a terminal constraint", x, z)


def _check_repeatable(problem: Problem, particles: Particles, controls: Tree) -> None:
    """Refuses functions that give another value the second time: their randomness may be in a user's hands."""
    x, z = particles.state, particles.data
    for t in range(problem.stages):
        u = problem.schedule(controls, t)
        if problem.running_cost is not None:
            cost = problem.running_cost(t, x, u, z)
            _check_same(cost, problem.running_cost(t, x, u, z), f"stage {t}: running_cost")
        moved = problem.dynamics(t, x, u, z)
        _check_same(moved, problem.dynamics(t, x, u, z), f"stage {t}: dynamics")
        x = moved
    _check_same(problem.terminal_cost(x, z), problem.terminal_cost(x, z), "terminal_cost")


def _check_agreement(problem: Problem, particles: Particles, controls: Tree) -> None:
    name, control = tree.named_leaves(controls, "controls")[0]
    device, dtype = control.device, control.dtype
    if problem.per_particle and active():
        raise InvalidValue(
            "per_particle=True on several ranks: each would hold the controls of its own particles, and ranks hold "
            "one and the same control; run on one rank"
        )
    if problem.per_particle and len(control) != len(particles):
        raise InvalidValue(
            f"{name} is for {len(control)} particles (per_particle=True) and there are {len(particles)}; solve on "
            "all of them at once (batch_size=None), with a row of controls each"
        )
    for label, leaf in tree.named_leaves(particles.state, "state"):
        if leaf.device != device:
            cure = "move one: particles.to(device) or the controls"
            raise InvalidValue(f"{label} is on {leaf.device} and {name} on {device}; {cure}")
        if leaf.is_floating_point() and leaf.dtype != dtype:
            cure = f"cast one, for example particles.to({dtype})"
            raise InvalidValue(f"{label} is {leaf.dtype} and {name} is {dtype}; {cure}")


def on_few(check: Callable[[Particles], None], particles: Particles) -> None:
    """A check on a few particles; on all of them where the problem cannot run on fewer (a control for each, say)."""
    if len(particles) <= _FEW and not active():  # ranks may hold more and fewer, and must do the same
        check(particles)
        return
    failed = False
    try:
        check(particles[:_FEW])
    except Exception:  # of whatever kind: it counts if it comes again on all of them
        failed = True
    if any_rank(failed, particles.state):
        check(particles)


@contextmanager
def _still(what: str, arguments: Tree) -> Iterator[None]:
    """Refuses a call that writes into its arguments."""
    tensors = [leaf for leaf in tree.leaves(arguments) if isinstance(leaf, Tensor)]
    versions = _versions(tensors)
    yield
    if versions != _versions(tensors):
        raise InvalidValue(f"{what} writes into its arguments (an in-place operation?); it must be pure")


@contextmanager
def _undrawn(what: str, _arguments: Tree) -> Iterator[None]:
    """Refuses a call that draws random numbers."""
    drawn = watched()
    yield
    if drawn():
        raise InvalidValue(_draws(what))


def _draws(what: str) -> str:
    return f"{what} draws random numbers (dropout?); it must be pure: take the randomness from the data z"


def _check_same(first: Tree, second: Tree, what: str) -> None:
    if not same_values(first, second):
        raise InvalidValue(
            f"{what} gives another value when it is called again (a random generator of its own, a counter?); it "
            "must be pure: take the randomness from the data z"
        )


def same_values(first: Tree, second: Tree) -> bool:
    """Whether two values of one function differ by no more than the order of its sums, which a GPU may change."""
    for a, b in zip(tree.leaves(first), tree.leaves(second), strict=True):
        if not isinstance(a, Tensor) or a.is_meta:
            continue
        same = torch.equal(a, b)
        if not same and tree.differentiable(a) and a.shape == b.shape:
            slack = torch.finfo(a.dtype).eps ** 0.5
            same = torch.allclose(a, b, rtol=slack, atol=slack * float(a.abs().nan_to_num().max()), equal_nan=True)
        if not same:
            return False
    return True


def _versions(tensors: list[Tensor]) -> list[int]:
    return [0 if leaf.is_inference() else leaf._version for leaf in tensors]


def check_cost(cost: Any, n: int, name: str) -> None:
    """Refuses what the function ``name`` returned unless it is one number per particle ``[n]``."""
    if not isinstance(cost, Tensor) or not cost.is_floating_point():
        what = f"a {cost.dtype} tensor" if isinstance(cost, Tensor) else kind_of(cost)
        raise InvalidType(f"{name} returned {what}; expected a floating-point tensor of shape ({n},)")
    if cost.shape != (n,):
        cure = "do not average over particles (reduction='none'), and repeat what they share: .expand(len(x))"
        hint = f"; {cure}" if cost.dim() == 0 else ""
        raise InvalidValue(f"{name} returned shape {tuple(cost.shape)}; expected one cost per particle, ({n},){hint}")


def _check_state(state: Tree, n: int, name: str) -> None:
    leaves = tree.named_leaves(state, f"{name}: x_next")
    if not leaves:
        raise InvalidValue(f"{name} returned an empty state")
    for label, leaf in leaves:
        if leaf.dim() == 0 or len(leaf) != n:
            raise InvalidValue(
                f"{label} of shape {tuple(leaf.shape)}; expected {n} particles on the leading axis (in a network, what "
                "has none stays within a stage: join its layers by stages=[...])"
            )


def _call(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls user code; an error it raises comes back with the stage and the shapes it was given."""
    with _explained(what):
        return function(*args)


@contextmanager
def _explained(what: str, x: Tree = (), z: Tree = ()) -> Iterator[None]:
    """An error in user code comes back with the stage and the shapes it was given, and what may be behind it."""
    try:
        yield
    except MfocError as error:
        if type(error) not in (InvalidValue, InvalidType) or not (cause := _cause(error, x, z)):
            raise
        raise type(error)(f"{error}; {cause}") from error
    except (RuntimeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        raise InvalidValue(_failed(what, error, x, z)) from error
    except TypeError as error:
        raise InvalidType(_failed(what, error, x, z)) from error


def _failed(what: str, error: Exception, x: Tree, z: Tree) -> str:
    cause = _cause(error, x, z)
    return f"{what} failed: {cause} ({error})" if cause else f"{what} failed: {error}"


def _cause(error: Exception, x: Tree, z: Tree) -> str | None:
    """What is likely behind an error in a function of the state x and the data z."""
    words = str(error)
    if z is None and "None" in words:
        return "the population has no data, z is None; pass a pair (x, z), such as inputs and their targets"
    leaves = [leaf for leaf in tree.leaves(x) if isinstance(leaf, Tensor)]
    if leaves and not any(tree.differentiable(leaf) for leaf in leaves):
        return (
            f"the state is {leaves[0].dtype}; expected floating-point numbers, such as x.float() (integers can only be "
            "tokens, which a first stage embeds)"
        )
    return _about_labels(words, x, z)


def _about_labels(words: str, x: Tree, z: Tree) -> str | None:
    """What is likely wrong with class labels z, where x is a network's output."""
    if not isinstance(x, Tensor) or not isinstance(z, Tensor) or x.dim() != 2 or z.is_floating_point():
        return None
    classes = x.shape[1]
    if z.dim() == 2 and z.shape[1] == 1 and classes > 1:
        return f"the labels have shape {tuple(z.shape)}; expected class indices ({len(z)},), z.squeeze(1)"
    if z.dim() == 1 and "out of bounds" in words:
        return f"the output has {classes} classes and labels lie in {int(z.min())}..{int(z.max())}; they count from 0"
    if z.dim() == 1 and classes > 1 and "size of tensor" in words:
        return (
            f"the labels are class indices ({len(z)},) and this cost wants numbers in the shape of the output: "
            f"torch.nn.functional.one_hot(z, {classes}), or a cost of class indices, such as F.cross_entropy"
        )
    return None

"""Runs the functions of a problem once, stage by stage, and explains what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_plain, kind_of
from mfoc.distributed import active, any_rank
from mfoc.draws import draws, watched
from mfoc.errors import InvalidType, InvalidValue, MfocError
from mfoc.kept import Kept, all_equal
from mfoc.particles import Particles
from mfoc.tree import Tree

if TYPE_CHECKING:
    from mfoc.problem import Problem

Watch = Callable[[str, Tree, Callable[[], Any]], Any]  # (what, arguments, call) -> what the call returns

_FEW = 4  # particles on which a stage is evaluated a second time
_AGAIN = 4  # times more, where it gave nearly the same


def check_leaves(named: Sequence[tuple[str, Tensor]], *, per_particle: bool) -> None:
    """Refuses leaves of controls that are no finite floating-point numbers, or do not fit one another."""
    first_name, first = named[0]
    for name, leaf in named:
        if hasattr(leaf, "placements"):  # a DTensor: asking for its type imports what takes long
            raise InvalidType(
                f"{name} is {kind_of(leaf)}, of which each rank holds a part (fully_shard, FSDP2, tensor parallelism); "
                "controls are held whole by every rank, and the population is split: give leaf.full_tensor()"
            )
        check_plain("a control, a floating-point tensor", **{name: leaf})
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
    few, given = particles[:_FEW], Kept()
    given.keep([few.state, few.data, controls])
    with torch.no_grad():
        drawn = watched()
        _run(problem, particles, controls, _still)
        if not given.unchanged():  # in a way that no version tells
            given.restore()
            on_few(lambda few: _run(problem, few, controls, _untouched), particles)
            raise InvalidValue(_writes("one of dynamics and costs"))
        if any_rank(drawn(), controls):  # by whom is asked only then: it takes several calls of each function
            on_few(lambda few: _run(problem, few, controls, partial(_undrawn, controls)), particles)
        on_few(lambda few: _check_again(problem, few, controls), particles)


def _run(problem: Problem, particles: Particles, controls: Tree, watch: Watch) -> None:
    """Calls every function once along the stages, each of them through ``watch``."""
    x, z, n = particles.state, particles.data, len(particles)

    def ask(what: str, given: Tree, function: Callable[..., Any], *args: Any, label: Callable[[], str] = str) -> Any:
        return watch(what, given, partial(_call, lambda: label() or what, x, z, function, *args))

    for t in range(problem.stages):
        u = ask(f"stage {t}: the schedule", controls, problem.schedule, controls, t)
        if problem.running_cost is not None:
            what = f"stage {t}: running_cost"
            ask(what, [x, u, z], _cost, problem.running_cost, n, what, t, x, u, z)
        for constraint in problem.path_constraints:
            what = f"stage {t}: a path constraint"
            ask(what, [x, u, z], constraint.of, n, what, t, x, u, z)
        what = f"stage {t}: dynamics"
        moved = ask(what, [x, u, z], problem.dynamics, t, x, u, z, label=partial(_labelled, what, state=x, control=u))
        if not _fits(moved, n):
            _check_state(moved, n, f"{what} (given a state {tree.describe(x)})")
        x = moved
    label = partial(_labelled, "terminal_cost", state=x, data=z)
    ask("terminal_cost", [x, z], _cost, problem.terminal_cost, n, "terminal_cost", x, z, label=label)
    for constraint in problem.terminal_constraints:
        what = "a terminal constraint"
        ask(what, [x, z], constraint.of, n, what, x, z)


def _labelled(what: str, **given: Tree) -> str:
    """A call with the shapes it was given; asked for when it fails only, as shapes of large trees take long."""
    return f"{what} ({', '.join(f'{name} {tree.describe(value)}' for name, value in given.items())})"


def _cost(function: Callable[..., Any], n: int, what: str, *args: Any) -> Tensor:
    cost: Tensor = function(*args)
    check_cost(cost, n, what)
    return cost


def _check_again(problem: Problem, particles: Particles, controls: Tree) -> None:
    """Calls every function twice; refuses those that say something else then, or that change what they are given."""
    given = Kept()
    given.keep([particles.state, particles.data, controls])

    def twice(what: str, _arguments: Tree, call: Callable[[], Any]) -> Any:
        first, again = call(), call()
        if not all_equal(first, again) and (not same_values(first, again) or _keeps_changing([first, again], call)):
            raise InvalidValue(
                f"{what} gives another value when it is called again (a random generator of its own, a counter?); it "
                "must be pure: take the randomness from the data z"
            )
        if what.endswith(("dynamics", "schedule")):
            given.keep(first)
        return first

    try:
        _run(problem, particles, controls, twice)
    except InvalidValue:
        if given.unchanged():
            raise
    if not given.unchanged():
        given.restore()
        _run(problem, particles, controls, _untouched)
        raise InvalidValue(_writes("one of dynamics and costs"))


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


def _still(what: str, arguments: Tree, call: Callable[[], Any]) -> Any:
    """Refuses a call that writes into its arguments, as their versions tell."""
    tensors = [leaf for leaf in tree.leaves(arguments) if isinstance(leaf, Tensor)]
    versions = _versions(tensors)
    found = call()
    if versions != _versions(tensors):
        raise InvalidValue(_writes(what))
    return found


def _untouched(what: str, arguments: Tree, call: Callable[[], Any]) -> Any:
    """Refuses a call that changes its arguments, as their values tell."""
    given = Kept()
    given.keep(arguments)
    found = call()
    if not given.unchanged():
        given.restore()
        raise InvalidValue(_writes(what))
    return found


def _undrawn(controls: Tree, what: str, _arguments: Tree, call: Callable[[], Any]) -> Any:
    """Refuses a call that draws random numbers."""
    if draws(call, lambda flag: any_rank(flag, controls)):
        raise InvalidValue(_draws(what))
    return call()


def _writes(what: str) -> str:
    return f"{what} writes into its arguments (an in-place operation, .data, a NumPy view?); it must be pure"


def _draws(what: str) -> str:
    return f"{what} draws random numbers (dropout?); it must be pure: take the randomness from the data z"


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


def _keeps_changing(seen: list[Tree], call: Callable[[], Tree]) -> bool:
    """Whether each call has another value, if by little: small noise, where rounding has a few values at most.

    Asked on the CPU only, as a GPU may add in another order each time; and on one rank, as a call may wait for others.
    """
    if active() or any(leaf.device.type != "cpu" for leaf in tree.leaves(seen[0]) if isinstance(leaf, Tensor)):
        return False
    seen = [*seen, *(call() for _ in range(_AGAIN))]
    return not any(all_equal(a, b) for a, b in combinations(seen, 2))


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


def _fits(state: Tree, n: int) -> bool:
    """Whether a state is one tensor ``[n, ...]``, as most are: others are looked at leaf by leaf."""
    return isinstance(state, Tensor) and state.dim() > 0 and state.shape[0] == n


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


def _call(label: Callable[[], str], x: Tree, z: Tree, function: Callable[..., Any], *args: Any) -> Any:
    """Calls user code; an error comes back with the stage, the shapes it was given, and what may be behind it."""
    try:
        return function(*args)
    except MfocError as error:
        if type(error) not in (InvalidValue, InvalidType) or not (cause := _cause(error, x, z)):
            raise
        raise type(error)(f"{error}; {cause}") from error
    except (RuntimeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        raise InvalidValue(_failed(label(), error, x, z)) from error
    except TypeError as error:
        raise InvalidType(_failed(label(), error, x, z)) from error


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

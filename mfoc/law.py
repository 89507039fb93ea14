"""The law of the population, for dynamics and costs that depend on it: interacting (McKean-Vlasov) problems.

    m = (1/N) sum_i x_i,   N the particles of all ranks,

after R. Carmona, F. Delarue (2018), "Probabilistic theory of mean field games with applications I", sec. 1.4: a
population of N particles enters through its empirical law. On one rank ``mean(x)`` is ``x.mean(0)``. Where the
population is split over ranks it is reduced over them, and written so it is also *seen*: ``mfoc.solve`` can tell a
problem that uses the law from one that does not (``mfoc.interacting``).

What is differentiated is the sum, over the particles of all ranks, of what each rank computed of its own. The gradient
in one particle then is N dJ/dx(i), the costate, however the particles are shared out. With that convention the sum over
ranks is its own adjoint, so derivatives of any order are sums over ranks again. Every rank must call these functions,
and take derivatives through them, the same number of times and in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from mfoc.checks import check_callable, check_plain, is_plain, kind_of
from mfoc.distributed import active, all_reduce, rank, world_size
from mfoc.errors import InvalidType, InvalidValue


def mean(x: Tensor) -> Tensor:
    """The population's mean, over the particles of all ranks.

    Args:
        x: a floating-point or complex tensor, this rank's particles along the leading axis ``[N, ...]``.

    Returns:
        The mean ``[...]``, the same on all ranks; differentiable to any order, also under ``torch.func.vmap``.

    Raises:
        InvalidType: ``x`` is no such tensor.
        InvalidValue: it has no leading axis, or no particle on it.
    """
    _check(x)
    return _averaged(x.mean(0), len(x))


def variance(x: Tensor) -> Tensor:
    """The population's variance of each coordinate: ``[N, ...]`` to ``[...]``, divided by N.

    From the deviations, in two passes: the mean of squares less the square of the mean loses its digits.

    Raises:
        InvalidType, InvalidValue: as ``mean``.
    """
    centred = x - mean(x)
    return mean((centred * centred.conj()).real if x.is_complex() else centred.square())


def covariance(x: Tensor) -> Tensor:
    """The population's covariance matrix: ``[N, d]`` to ``[d, d]``, divided by N.

    Raises:
        InvalidType, InvalidValue: as ``mean``, or ``x`` is no matrix.
    """
    _check(x)
    if x.dim() != 2:
        raise InvalidValue(f"x has shape {tuple(x.shape)}; expected vectors [N, d] (flatten the others: x.flatten(1))")
    centred = x - mean(x)
    return _averaged(centred.mH @ centred / len(x), len(x))


def kernel_mean(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor | None = None) -> Tensor:
    """The mean of a kernel over the population, (1/N) sum_j k(x_i, y_j), for each particle i.

    The kernel mean embedding at x_i, or the convolution of an interaction with the empirical law: j = i is included.
    N^2 pairs are evaluated.

    Args:
        kernel: ``kernel(x, y)`` of broadcast pairs ``[N, 1, ...]`` and ``[1, M, ...]``, returning ``[N, M, ...]``.
        x: where it is evaluated, this rank's particles ``[N, ...]``.
        y: the particles averaged over, of which this rank holds its share ``[N, ...]``; ``x`` when None.

    Returns:
        ``[N, ...]``, the mean over the particles of all ranks.

    Raises:
        InvalidType, InvalidValue: as ``mean``, or the kernel returned another shape.
    """
    check_callable("a function of pairs (x, y)", kernel=kernel)
    _check(x)
    y = x if y is None else y
    _check(y)
    everyone = _gathered(y)
    pairs = kernel(x[:, None], everyone[None])
    if not isinstance(pairs, Tensor) or pairs.shape[:2] != (len(x), len(everyone)):
        what = tuple(pairs.shape) if isinstance(pairs, Tensor) else f"a {type(pairs).__name__}"
        raise InvalidValue(
            f"kernel returned {what}; expected one value for each pair, ({len(x)}, {len(everyone)}, ...): it is given "
            f"{(len(x), 1, *x.shape[1:])} and {(1, len(everyone), *y.shape[1:])}"
        )
    return pairs.mean(1)


def jointly(function: Callable[..., Tensor], *clouds: Tensor) -> Tensor:
    """What a function of the whole cloud says of this rank's particles.

    For couplings that are no mean, such as a bandwidth from the median of all distances. Every rank holds all particles
    and evaluates the function on them. Where the law is held or frozen, so is all that the function sees.

    Args:
        function: ``function(*clouds)`` of tensors ``[M, ...]``, the particles of all ranks, returning ``[M, ...]``.
        clouds: this rank's particles ``[N, ...]``, as many in each.

    Returns:
        The rows of this rank ``[N, ...]``.

    Raises:
        InvalidType, InvalidValue: as ``mean``.
    """
    check_callable("a function of clouds [M, ...]", function=function)
    if not clouds:
        raise InvalidValue("clouds is empty; expected at least one tensor [N, ...] after the function")
    for x in clouds:
        _check(x)
        if len(x) != len(clouds[0]):
            raise InvalidValue(f"clouds hold {len(clouds[0])} and {len(x)} particles; expected as many in each")
    everyone = [_gathered(x) for x in clouds]
    before = int(_asked(torch.tensor(0, device="cpu"), lambda: _before(clouds[0], everyone[0])))
    answer = function(*everyone)
    if not isinstance(answer, Tensor) or answer.shape[:1] != everyone[0].shape[:1]:
        what = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else kind_of(answer)
        raise InvalidValue(f"function returned {what}; expected a row for each of {len(everyone[0])} particles")
    return answer[before : before + len(clouds[0])]


def count(x: Tensor) -> int:
    """The number of particles of all ranks, of which ``x`` ``[N, ...]`` holds this rank's."""

    def overall() -> Tensor:
        everyone = _gathered_now(x.detach())
        return torch.tensor(len(everyone), device="cpu")

    return int(_asked(torch.tensor(len(x), device="cpu"), overall))


def is_single(x: Tensor) -> bool:
    """Whether the population is one particle, held by each rank; ``x`` ``[N, ...]`` is this rank's.

    False where the law is played from a tape, and under ``torch.func.vmap``, where it cannot be told.
    """
    if _TAPE.get() is not None or not active():
        return not active() and len(x) == 1
    # In most batches one number says that it is not.
    return int(_counts(x).sum()) == world_size() and len(_gathered_now(x.detach())) == 1


def shared(x: Tensor) -> Tensor:
    """What the population has in common and no mean is needed of, as the control that all particles share.

    The same tensor; but of the law, so that a player of a mean-field game (``mfoc.Equilibrium``) takes it for given:
    ``shared(u)`` is what the others do, where ``u`` is what he does himself.
    """
    tape = _TAPE.get()
    if tape is not None and tape.over_ranks:
        x = tape.next(x)
    return x.detach() if _FROZEN.get() else x


def is_frozen() -> bool:
    """Whether the law is not differentiated here, since a game is solved; see ``mfoc.Equilibrium``."""
    return _FROZEN.get()


def _check(x: Any) -> None:
    if not isinstance(x, Tensor):
        raise InvalidType(f"x is a {type(x).__name__}; expected a tensor, the particles on its leading axis [N, ...]")
    if not is_plain(x, on_meta=True):
        check_plain("a tensor, the particles on its leading axis [N, ...]", x=x)
    if not (x.is_floating_point() or x.is_complex()):
        raise InvalidType(f"x is a {x.dtype} tensor, which has no mean; make it floating point, as in x.to(u.dtype)")
    if x.dim() == 0 or len(x) == 0:
        raise InvalidValue(
            f"x has shape {tuple(x.shape)}; expected at least one particle on the leading axis, [N, ...]"
        )


# ---- what knows of the ranks


class _Summed(torch.autograd.Function):
    """The sum over ranks, which is its own adjoint; see the top of the file."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the function is linear."""

    @staticmethod
    def backward(_ctx: Any, *slopes: Tensor) -> Tensor:
        return _summed(slopes[0])

    @staticmethod
    def jvp(_ctx: Any, *tangents: Tensor) -> Tensor:
        return _summed(tangents[0])

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return _summed(x), in_dims[0]


def _summed(x: Tensor) -> Tensor:
    total: Tensor = _Summed.apply(x)
    return total


def _averaged(local: Tensor, particles: int) -> Tensor:
    """The mean over all ranks of a mean over this rank's particles, in one reduction."""

    def overall() -> Tensor:
        if not active():
            return local
        wide = torch.promote_types(local.dtype, torch.float32)  # half precision cannot hold a number of particles
        flat = (local.to(wide) * particles).reshape(-1)
        total = _summed(torch.cat([flat, flat.new_full((1,), particles)]))
        return (total[:-1] / total[-1].detach()).reshape(local.shape).to(local.dtype)

    return _asked(local, overall)


def _counts(x: Tensor) -> Tensor:
    """How many particles each rank holds ``[ranks]``."""
    counts = torch.zeros(world_size(), dtype=torch.int64, device=x.device)
    counts[rank()] = len(x)
    all_reduce(counts)
    return counts


def _gathered(x: Tensor) -> Tensor:
    """The particles of all ranks ``[M, ...]``, in the order of the ranks."""
    return _asked(x, lambda: _gathered_now(x), cloud=True)


def _gathered_now(x: Tensor) -> Tensor:
    if not active():
        return x
    counts = _counts(x)
    before, after = int(counts[: rank()].sum()), int(counts[rank() + 1 :].sum())
    # Each rank's particles in their place among zeros: what is left to do is again a sum over ranks.
    shape = x.shape[1:]
    everyone = _summed(torch.cat([x.new_zeros(before, *shape), x, x.new_zeros(after, *shape)]))
    return x if _copies(everyone.detach(), counts.tolist()) else everyone


def _copies(everyone: Tensor, counts: list[int]) -> bool:
    """Whether every rank holds the same particles, as of a batch of fewer than there are ranks (``share``)."""
    n = counts[0]
    if n >= len(counts) or any(other != n for other in counts):
        return False
    blocks = everyone.reshape(len(counts), n, *everyone.shape[1:])
    try:
        return bool((blocks == blocks[:1]).all())
    except RuntimeError:  # under vmap there is no such question: the mean over equal copies is what it is
        return False


def _before(x: Tensor, everyone: Tensor) -> Tensor:
    """How many particles lie before this rank's in those of all ranks."""
    if not active() or len(everyone) == len(x):
        return torch.tensor(0, device="cpu")
    return _counts(x)[: rank()].sum().cpu()


# ---- what is asked of the law: noted and played again, which tells other couplings from it; or held


class Tape:
    """The answers of the law in the order they were asked for.

    The first pass under ``taped`` notes them; after ``rewind`` each is given again, whatever the particles are then.

    Args:
        over_ranks: note the answers over the particles of all ranks, which must then ask together; else they are from
            this rank's particles alone, and no rank waits for another.
    """

    def __init__(self, *, over_ranks: bool = False) -> None:
        self.answers: list[Tensor] = []
        self.over_ranks = over_ranks
        self._position: int | None = None  # None while noting

    @property
    def noting(self) -> bool:
        """Whether answers are still taken in."""
        return self._position is None

    def rewind(self) -> None:
        """From now on the answers are those that were noted."""
        self._position = 0

    def next(self, answer: Tensor, *, cloud: bool = False) -> Tensor:
        """The answer noted here, or ``answer``, which is noted.

        Args:
            answer: what the particles of now say.
            cloud: whether it is the particles themselves, of which there may now be another number.

        Raises:
            InvalidValue: the law is asked for something else than in the pass that was noted.
        """
        if self._position is None:
            self.answers.append(answer)
            return answer
        noted = self.answers[self._position] if self._position < len(self.answers) else None
        if noted is None or noted.shape[cloud:] != answer.shape[cloud:]:
            raise InvalidValue("the law is asked for in another order when a particle moves; expected the same calls")
        self._position += 1
        return noted


_TAPE: ContextVar[Tape | None] = ContextVar("tape", default=None)
_FROZEN: ContextVar[bool] = ContextVar("frozen", default=False)


def _asked(local: Tensor, overall: Callable[[], Tensor], *, cloud: bool = False) -> Tensor:
    """An answer of the law: from the tape if one runs, else over all ranks; without derivatives where it is frozen."""
    tape = _TAPE.get()
    if tape is None:
        answer = overall()
    else:
        answer = tape.next(overall() if tape.noting and tape.over_ranks else local, cloud=cloud)
    return answer.detach() if _FROZEN.get() else answer


@contextmanager
def taped(tape: Tape) -> Iterator[Tape]:
    """Within, the law answers through the tape."""
    token = _TAPE.set(tape)
    try:
        yield tape
    finally:
        _TAPE.reset(token)


@contextmanager
def frozen() -> Iterator[None]:
    """Within, no derivative goes through the law: its answers are what they are, whatever a particle does.

    A player of a mean-field game, one of infinitely many, does not move the law; see ``mfoc.Equilibrium``.
    """
    token = _FROZEN.set(True)
    try:
        yield
    finally:
        _FROZEN.reset(token)

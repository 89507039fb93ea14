"""What an iterate is of: told apart when a solve goes on from it, and between ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from mfoc import tree
from mfoc.distributed import active, any_rank, differing, is_main, world_size
from mfoc.errors import InvalidValue
from mfoc.identity import Plain, described, differences, entries, fingerprint, layout
from mfoc.particles import Particles
from mfoc.populations import Population
from mfoc.populations.fingerprints import fingerprint as of_batch
from mfoc.problem import Problem
from mfoc.tree import Tree

_NOT_SETTINGS = {"controls", "region", "horizon"}  # where it starts; what follows from bounds; the number of stages
_SHOWN = 4  # differences that a message names


class Origin(Mapping[str, Any]):
    """Problem, solver and population of a run; ``["batch"]``, of the batch before a step, is made when it is read.

    Args:
        settings: what holds of every iterate of the run.
        step: of the iterate.
        batch: the mark of the batch before a step, or None where it cannot be had any more.
    """

    def __init__(self, settings: Mapping[str, Plain], step: int, batch: Callable[[int], Plain]) -> None:
        self._settings, self._step, self._batch = settings, step, batch

    def __getitem__(self, name: str) -> Any:
        return self._batch(self._step) if name == "batch" else self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._settings, "batch"))

    def __len__(self) -> int:
        return len(self._settings) + 1

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def settings(problem: Problem, solver: Any, source: Population, particles: Particles) -> dict[str, Plain]:
    """Problem, solver and population in plain values."""
    of_solver = getattr(solver, "settings", None)
    return {
        "problem": _of_problem(problem, particles),
        "solver": described(solver) if of_solver is None else of_solver(problem),
        "population": source.described(),
    }


def _of_problem(problem: Problem, particles: Particles) -> Plain:
    own = {field.name: getattr(problem, field.name) for field in fields(problem) if field.init}
    return {
        "type": type(problem).__qualname__,
        "stages": problem.stages,
        "controls": layout(problem.controls, "controls"),
        # Without sizes: sequences are padded to the longest of a batch, draws of latents hold its observations.
        "state": layout(particles.state, "state", sizes=False),
        "data": {} if particles.data is None else layout(particles.data, "data", sizes=False),
        **{name: described(one) for name, one in own.items() if name not in _NOT_SETTINGS},
    }


def mark(step: int, particles: Particles) -> Plain:
    """What a batch is known by later: the fingerprint of this rank's share of it."""
    return {"step": step, "ranks": world_size(), "fingerprint": of_batch(particles)}


def check_same(origin: Mapping[str, Any], now: Mapping[str, Plain]) -> None:
    """Refuses to go on with another problem, solver or population.

    Raises:
        InvalidValue: something differs; the first few differences are named.
    """
    found = {
        f"{part}{'.' * bool(name)}{name}": values
        for part in ("problem", "solver", "population")
        if part in origin
        for name, values in differences(origin[part], now[part]).items()
    }
    if found:
        lines = [f"{name} was {before} and is {after}" for name, (before, after) in list(found.items())[:_SHOWN]]
        more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
        raise InvalidValue(
            f"start is an iterate of another run: {'; '.join(lines)}{more}. Take what it was made with, or "
            "allow_changes=True to go on from it all the same"
        )


def check_batch(origin: Mapping[str, Any], source: Population, like: Tree) -> None:
    """Refuses a population that gives other particles than those that the iterate was made with.

    Raises:
        InvalidValue: its last batch is another one now.
    """
    before = origin.get("batch")
    if not before or before["ranks"] != world_size():
        return
    # Rank 0 wrote it, and of its own share.
    now = mark(before["step"], source(before["step"]))
    if any_rank(is_main() and now != before, like):
        raise InvalidValue(
            f"the population gives other particles than before: batch {before['step']}, the last that start was made "
            "with, is another one now. Are the data others, or is it no function of the step (a random generator that "
            "moves on, a counter, a clock)? Seed what is drawn by n, or give allow_changes=True to go on with it"
        )


def check_alike(now: Mapping[str, Plain], start: Mapping[str, Tree], like: Tree) -> None:
    """Refuses ranks that start differently: they would go apart, each for itself.

    Args:
        now: what is solved, in plain values.
        start: where it starts and ends, by name: compared bit for bit.
        like: a tree with a tensor on this rank's device.

    Raises:
        InvalidValue: something differs; it is named.
    """
    if not active():
        return
    words = {name: word for name, word in entries(now).items() if not _of_one_rank(name, word)}
    words |= {name: _word(one) for name, one in start.items()}
    if found := differing(words, like):
        raise InvalidValue(
            f"the ranks do not start alike. {found}. Every rank needs the same, such as by one seed, or a broadcast "
            "from rank 0 (torch.distributed.broadcast)"
        )


def _of_one_rank(name: str, word: str) -> bool:
    """Whether a function may well hold this on one rank and something else on another: its number, a file's name."""
    return ".holds." in name and (word.lstrip("-").isdigit() or word[0] in "'\"")


def _word(start: Tree) -> str:
    if start is None or isinstance(start, int | float):
        return repr(start)
    return f"values with digest {fingerprint(tree.leaves(start))}"

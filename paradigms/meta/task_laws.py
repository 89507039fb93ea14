"""Laws of tasks: populations whose particles are tasks.

A task is data z = {"support": (x, y), "query": (x, y)}; leaves are ``[tasks, shots, ...]``. The state that enters the
problem is a placeholder, zeros ``[tasks]``. Every population here is a pure function of (seed, step).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_instance, check_integer, kind_of
from mfoc.seeding import mixed_seed

Pair = tuple[Any, Tensor]


def tasks(support: Any, query: Any) -> mfoc.Particles:
    """A batch of tasks as particles.

    Args:
        support: a pair (x, y) of tensors ``[tasks, shots, ...]``, what a task is learned from. The inputs x of a
            network of several arguments are a tuple in their order, or a dict by their names.
        query: a pair (x, y), what the learned weights are judged on.

    Raises:
        InvalidType: no pairs of tensors.
        InvalidValue: empty or ragged supports or queries, numbers of tasks that differ.
    """
    pairs = {"support": _pair(support, "support"), "query": _pair(query, "query")}
    return check_tasks(mfoc.Particles(placeholder(pairs["support"][0]), pairs))


def placeholder(x: Any) -> Tensor:
    """The state that enters the problem: zeros ``[tasks]``, integers where the (first) inputs are no floats."""
    leaf: Tensor = tree.leaves(x)[0]
    return leaf.new_zeros(len(leaf), dtype=leaf.dtype if leaf.is_floating_point() else torch.int64)


def _pair(pair: Any, name: str) -> Pair:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InvalidType(f"{name} is {kind_of(pair)}; expected a pair (x, y) of tensors [tasks, shots, ...]")
    for leaf, part in zip(pair, "xy", strict=True):
        if isinstance(leaf, list) or (isinstance(leaf, tuple) and part == "y"):
            raise InvalidType(
                f"{name} {part} is {kind_of(leaf)}, so tasks may have different numbers of shots; tasks of one batch "
                "are evaluated together: stack them to [tasks, shots, ...], with as many shots in each"
            )
        if not isinstance(leaf, Tensor) and not (part == "x" and _several(leaf)):
            raise InvalidType(
                f"{name} {part} is {kind_of(leaf)}; expected a tensor [tasks, shots, ...]"
                + (", or for a network of several arguments a tuple or a dict of them" if part == "x" else "")
            )
    return pair[0], pair[1]


def _several(x: Any) -> bool:
    """Whether inputs are tensors in a tuple or a dict, for a network of several arguments."""
    return isinstance(x, tuple | dict) and bool(x) and all(isinstance(leaf, Tensor) for leaf in tree.leaves(x))


def check_tasks(particles: Any) -> mfoc.Particles:
    """Refuses particles that are no tasks.

    Raises:
        InvalidType, InvalidValue: see ``tasks``.
    """
    if not isinstance(particles, mfoc.Particles):
        raise InvalidType(f"tasks is {kind_of(particles)}; expected mfoc.Particles, see paradigms.meta.tasks")
    data = particles.data
    check_instance(dict, "a dict with 'support' and 'query', as paradigms.meta.tasks makes it", data=data)
    if not {"support", "query"} <= data.keys():
        raise InvalidValue(f"a task's data has keys {list(data)}; expected 'support' and 'query'")
    for name in ("support", "query"):
        inputs, y = _pair(data[name], name)
        for x in tree.leaves(inputs):
            if x.dim() < 2 or y.dim() < 2 or x.shape[:2] != y.shape[:2]:
                raise InvalidValue(
                    f"{name} x has shape {tuple(x.shape)} and y {tuple(y.shape)}; both need leading axes [tasks, shots]"
                )
            if x.shape[1] == 0:
                raise InvalidValue(f"{name} is empty: x has shape {tuple(x.shape)}; expected at least one shot a task")
    shapes = [[leaf.shape[2:] for leaf in tree.leaves(data[name][0])] for name in ("support", "query")]
    if shapes[0] != shapes[1]:
        raise InvalidValue("support and query hold inputs of different shapes")
    return particles


def as_tasks(source: Any) -> mfoc.Population:
    """A population of tasks from a population, a function of the step, particles or a dict of two pairs."""
    if isinstance(source, dict):
        if not {"support", "query"} <= source.keys():
            raise InvalidValue(f"tasks has keys {sorted(source)}; expected 'support' and 'query'")
        source = tasks(source["support"], source["query"])
    found = mfoc.population(source)
    check_tasks(found(0))
    return found


def sinusoids(
    *,
    tasks: int = 25,
    shots: int = 10,
    queries: int = 10,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, math.pi),
    x: tuple[float, float] = (-5.0, 5.0),
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> mfoc.Population:
    """Regression on sine waves y = A sin(x - b), all laws uniform: Finn, Abbeel, Levine (2017), sec. 5.1.

    Args:
        tasks: tasks in a batch.
        shots: points of a support.
        queries: points of a query.
        amplitude: range of A.
        phase: range of b.
        x: range of the inputs.
        seed: seed; batches of different seeds are unrelated.
        dtype: of the points; torch's default when None.
        device: where to put them; they are drawn on the CPU.

    Raises:
        InvalidType, InvalidValue: counts, a seed or ranges that are none, a dtype that is not floating.
    """
    check_integer(1, tasks=tasks, shots=shots, queries=queries)
    check_integer(0, seed=seed)
    for name, limits in {"amplitude": amplitude, "phase": phase, "x": x}.items():
        check_range(name, limits)
    kind = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise InvalidType(f"dtype is {dtype!r}; expected a floating one, such as torch.float64")

    def draw(step: int) -> mfoc.Particles:
        generator = torch.Generator("cpu").manual_seed(mixed_seed(seed, step))
        uniform = torch.rand(tasks, shots + queries + 2, 1, generator=generator, dtype=kind, device="cpu")

        def within(part: Tensor, limits: tuple[float, float]) -> Tensor:
            return limits[0] + (limits[1] - limits[0]) * part

        points = within(uniform[:, 2:], x)
        waves = within(uniform[:, :1], amplitude) * torch.sin(points - within(uniform[:, 1:2], phase))
        points, waves = points.to(device), waves.to(device)
        data = {"support": (points[:, :shots], waves[:, :shots]), "query": (points[:, shots:], waves[:, shots:])}
        return mfoc.Particles(placeholder(points), data)

    return mfoc.population(draw)


def check_range(name: str, limits: Any) -> None:
    """Refuses what is no pair of finite numbers in order."""
    message = f"{name} is {limits!r}; expected a range (low, high)"
    if not isinstance(limits, tuple | list) or not all(isinstance(end, int | float) for end in limits):
        raise InvalidType(message)
    if len(limits) != 2 or not all(map(math.isfinite, limits)) or limits[0] > limits[1]:
        raise InvalidValue(message)

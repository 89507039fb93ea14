"""Few-shot classification: tasks from labelled examples, and from learn2learn's task sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_flag, check_integer, check_plain, kind_of
from mfoc.seeding import mixed_seed, seeded
from paradigms.meta.task_laws import Pair, as_tasks, check_tasks, placeholder


def few_shot(
    x: Any,
    y: Any = None,
    *,
    ways: int,
    shots: int,
    queries: int,
    tasks: int,
    rotations: bool = False,
    seed: int = 0,
) -> mfoc.Population:
    """Few-shot classification: tasks of ``ways`` classes drawn from a labelled set (Vinyals et al. 2016, sec. 4).

    Args:
        x: inputs ``[N, ...]`` (tensor or array; uint8 becomes floats in [0, 1]), or a map-style dataset of pairs
            (input, label), which is read once; then ``y`` is None.
        y: integer labels ``[N]``, any integers.
        ways: classes a task.
        shots: examples of each class in the support.
        queries: examples of each class in the query, none of them in the support.
        tasks: tasks in a batch.
        rotations: each class turned by 90, 180 and 270 degrees is a class of its own (Santoro et al. 2016, sec. 4.1);
            the inputs are square images ``[N, ..., H, H]``.
        seed: seed.

    Raises:
        InvalidType, InvalidValue: wrong arguments, more ways than classes, a class with too few examples.
    """
    check_integer(2, ways=ways)
    check_integer(1, shots=shots, queries=queries, tasks=tasks)
    check_integer(0, seed=seed)
    check_flag(rotations=rotations)
    inputs, labels = _labelled(x, y)
    if rotations and (inputs.dim() < 3 or inputs.shape[-1] != inputs.shape[-2]):
        raise InvalidValue(f"rotations need square images; the inputs have shape {tuple(inputs.shape)}")
    classes, which = torch.unique(labels, return_inverse=True)
    kinds = len(classes) * (4 if rotations else 1)
    if ways > kinds:
        raise InvalidValue(f"ways is {ways} and the data have {kinds} classes; expected no more ways than classes")
    counts = torch.bincount(which, minlength=len(classes))
    if int(counts.min()) < shots + queries:
        poor = int(counts.argmin())
        raise InvalidValue(
            f"class {int(classes[poor])} has {int(counts[poor])} examples; shots + queries is {shots + queries}"
        )
    # members[c, i] is the i-th example of class c; slots beyond a class's count are never drawn.
    order, first = which.argsort(stable=True), counts.cumsum(0) - counts
    slots = torch.arange(int(counts.max()), device="cpu")
    beyond = slots >= counts[:, None]
    members = order[(first[:, None] + slots).clamp(max=len(order) - 1)]
    answers = [torch.arange(ways, device="cpu").repeat_interleave(each) for each in (shots, queries)]

    def draw(step: int) -> mfoc.Particles:
        generator = torch.Generator("cpu").manual_seed(mixed_seed(seed, step))
        kind = torch.rand(tasks, kinds, generator=generator, device="cpu", dtype=torch.float32).topk(ways, 1).indices
        chosen = kind % len(classes)
        shape = (tasks, ways, members.shape[1])
        keys = torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32)
        keys = keys.masked_fill(beyond[chosen], -1.0)
        picked = members[chosen].gather(2, keys.topk(shots + queries, 2).indices)
        cloud = inputs[picked]
        if rotations:
            turns = kind.div(len(classes), rounding_mode="floor")
            for turn in range(1, 4):
                cloud[turns == turn] = torch.rot90(cloud[turns == turn], turn, (-2, -1))
        support, query = cloud[:, :, :shots].flatten(1, 2), cloud[:, :, shots:].flatten(1, 2)
        wanted = [a.to(cloud.device).expand(tasks, -1) for a in answers]
        return mfoc.Particles(placeholder(cloud), {"support": (support, wanted[0]), "query": (query, wanted[1])})

    return mfoc.population(draw)


def from_taskset(taskset: Any, *, shots: int, tasks: int, seed: int = 0) -> mfoc.Population:
    """A learn2learn ``Taskset`` as a population of tasks.

    Each of its tasks (x, y) is split: the first ``shots`` examples of each class are the support, the others the query.
    With ``num_tasks=-1`` tasks are drawn afresh. The tasks of a finite set are its particles: each is visited once an
    epoch, and the description of task i is a function of (seed, i), where the set has not described it before. The set
    itself is left as it is, so that its own ``[i]`` may describe task i otherwise.

    Args:
        taskset: a ``learn2learn.data.Taskset``, or anything whose ``[i]`` and ``sample()`` give a task (x, y) and draw
            from the global generators alone.
        shots: examples of each class in the support.
        tasks: tasks in a batch.
        seed: seeds the global generators that the task transforms draw from; they are put back.

    Raises:
        InvalidType: no task set, or tasks that are no pairs of tensors.
        InvalidValue: labels that are no classes, a class with no example left for the query, tasks of different sizes,
            a finite set with fewer tasks than a batch, a set whose tasks are no function of the generators.
    """
    if not hasattr(taskset, "sample") or not hasattr(taskset, "__getitem__"):
        raise InvalidType(f"taskset is {kind_of(taskset)}; expected a learn2learn.data.Taskset")
    check_integer(1, shots=shots, tasks=tasks)
    check_integer(0, seed=seed)
    count = getattr(taskset, "num_tasks", -1)
    if count == -1:
        found = mfoc.population(lambda step: _drawn(taskset, shots, tasks, mixed_seed(seed, step)))
        _check_repeats(check_tasks(found(0)), found(0))
        return found
    if not (hasattr(taskset, "sample_task_description") and hasattr(taskset, "get_task")):
        raise InvalidType(
            f"taskset is {kind_of(taskset)} of {count} tasks whose descriptions cannot be read, so that batch "
            "n is no function of n; expected a learn2learn.data.Taskset, or one with num_tasks=-1"
        )
    if count < tasks:
        raise InvalidValue(f"tasks is {tasks} and the task set has {count}; expected at most as many in a batch")
    described = _Described(taskset, shots, seed)
    loader: Any = torch.utils.data.DataLoader(described, batch_size=tasks, shuffle=True, collate_fn=_batch)
    return as_tasks(mfoc.population(loader, seed=seed))


def _drawn(taskset: Any, shots: int, tasks: int, key: int) -> mfoc.Particles:
    with seeded(key):
        drawn = [_split(taskset.sample(), shots) for _ in range(tasks)]
    try:
        return mfoc.Particles(*_batch(drawn))
    except RuntimeError as error:
        raise InvalidValue(f"the tasks of a batch differ in size (ragged supports): {error}") from error


def _batch(drawn: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Tensor, dict[str, Pair]]:
    """Placeholder state and data of a batch of tasks."""
    x, y, a, b = (torch.stack(column) for column in zip(*drawn, strict=True))
    return placeholder(x), {"support": (x, y), "query": (a, b)}


def _check_repeats(first: mfoc.Particles, again: mfoc.Particles) -> None:
    """Refuses a law that gives other tasks when it is asked again."""
    leaves = ([leaf for pair in cloud.data.values() for leaf in pair] for cloud in (first, again))
    if not all((a.shape == b.shape and a.equal(b)) or bool((a != a).any()) for a, b in zip(*leaves, strict=True)):
        raise InvalidValue(
            "taskset gives other tasks when the global generators (torch, numpy, random) are seeded alike; a "
            "population must be a function of the step alone"
        )


class _Described(torch.utils.data.Dataset[Any]):
    """The tasks of a finite set, described as they are asked for: a map-style dataset."""

    def __init__(self, taskset: Any, shots: int, seed: int) -> None:
        self._taskset, self._shots, self._seed = taskset, shots, seed
        self._known = dict(getattr(taskset, "sampled_descriptions", {}))

    def __len__(self) -> int:
        return int(self._taskset.num_tasks)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if i not in self._known:
            with seeded(mixed_seed(self._seed, i, 3)):
                self._known[i] = self._taskset.sample_task_description()
        return _split(self._taskset.get_task(self._known[i]), self._shots)


def _split(task: Any, shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support and query of one task, classes in order."""
    x, y = _checked_task(task)
    order = y.argsort(stable=True)
    x, y = x[order], y[order]
    _, counts = torch.unique_consecutive(y, return_counts=True)
    if int(counts.min()) <= shots:
        raise InvalidValue(
            f"a class of a task has {int(counts.min())} examples and shots is {shots}; none is left for the query: "
            "give the task set more shots (KShots of support and query together)"
        )
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(y), device=y.device) - first.repeat_interleave(counts)
    near = rank < shots
    return x[near], y[near], x[~near], y[~near]


def _checked_task(task: Any) -> Pair:
    """Inputs and labels of a task as the task set gives it."""
    pair = tuple(task[:2]) if isinstance(task, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(leaf, Tensor) for leaf in pair):
        what = ", ".join(type(leaf).__name__ for leaf in pair) or type(task).__name__
        raise InvalidType(f"a task of the task set is made of {what}; expected a pair (x, y) of tensors")
    x, y = pair
    if y.dim() != 1 or not len(y) or x.dim() == 0 or len(x) != len(y) or y.is_floating_point() or y.is_complex():
        raise InvalidValue(
            f"a task of the task set has labels of dtype {y.dtype} and shape {tuple(y.shape)} for inputs "
            f"{tuple(x.shape)}; expected one integer for each of its examples: for regression, write a function of "
            "the step that returns paradigms.meta.tasks"
        )
    return x, y


def _labelled(x: Any, y: Any) -> Pair:
    if y is None and not isinstance(x, Tensor | np.ndarray):
        if isinstance(x, dict) or not hasattr(x, "__getitem__") or not hasattr(x, "__len__"):
            raise InvalidType(f"x is {kind_of(x)}; expected inputs and labels, or a map-style dataset of pairs")
        x, y = _read(x)
    if y is None:
        raise InvalidType("y is None; expected integer labels [N]")
    inputs, labels = _tensor(x, "x"), _tensor(y, "y")
    check_plain("examples [N, ...]", x=inputs)
    check_plain("integer labels [N]", y=labels)
    if inputs.dim() < 2 or not inputs.numel():
        raise InvalidValue(f"x has shape {tuple(inputs.shape)}; expected examples [N, ...], none of them empty")
    if labels.dim() != 1 or len(labels) != len(inputs) or labels.is_floating_point() or labels.is_complex():
        raise InvalidValue(
            f"labels of dtype {labels.dtype} and shape {tuple(labels.shape)} for inputs {tuple(inputs.shape)}; "
            "expected one integer for each input, [N]"
        )
    if inputs.is_complex():
        raise InvalidValue(f"x has dtype {inputs.dtype}; expected real numbers")
    if inputs.is_floating_point() and not inputs.isfinite().all():
        bad = int((~inputs.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InvalidValue(f"x holds NaN or infinite values, first in example {bad}")
    inputs = inputs.to(torch.get_default_dtype()) / 255 if inputs.dtype == torch.uint8 else inputs
    return inputs, labels.long().cpu()


def _read(dataset: Any) -> tuple[Any, Any]:
    """Inputs and labels of a map-style dataset of pairs."""
    if not len(dataset):
        raise InvalidValue("x is empty; expected at least one example")
    first = dataset[0]
    if not isinstance(first, tuple | list) or len(first) < 2:
        raise InvalidType(f"x holds items of {type(first).__name__}; expected pairs (input, label)")
    try:
        x, y = torch.utils.data.default_collate([dataset[i] for i in range(len(dataset))])[:2]
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidValue(f"the dataset's items make no arrays (tensors of one size?): {error}") from error
    return x, y


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise InvalidType(f"{name} makes no array of numbers: {error}") from error

"""Few-shot classification: tasks from labelled examples, and from learn2learn's task sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.population import mixed_seed, seeded
from paradigms.meta.tasks import Pair, as_tasks, check_counts, check_seed


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
    check_counts(ways=ways, shots=shots, queries=queries, tasks=tasks)
    check_seed(seed)
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
    answers = (
        torch.arange(ways, device="cpu").repeat_interleave(shots),
        torch.arange(ways, device="cpu").repeat_interleave(queries),
    )

    def draw(step: int) -> mfoc.Particles:
        generator = torch.Generator("cpu").manual_seed(mixed_seed(seed, step))
        kind = torch.rand(tasks, kinds, generator=generator, device="cpu", dtype=torch.float32).topk(ways, 1).indices
        chosen = kind % len(classes)
        shape = (tasks, ways, members.shape[1])
        keys = torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32).masked_fill(
            beyond[chosen], -1.0
        )
        picked = members[chosen].gather(2, keys.topk(shots + queries, 2).indices)
        cloud = inputs[picked]
        if rotations:
            turns = kind.div(len(classes), rounding_mode="floor")
            for turn in range(1, 4):
                cloud[turns == turn] = torch.rot90(cloud[turns == turn], turn, (-2, -1))
        support, query = cloud[:, :, :shots].flatten(1, 2), cloud[:, :, shots:].flatten(1, 2)
        wanted = [a.to(cloud.device).expand(tasks, -1) for a in answers]
        return mfoc.Particles(cloud.new_zeros(tasks), {"support": (support, wanted[0]), "query": (query, wanted[1])})

    return mfoc.population(draw)


def from_taskset(taskset: Any, *, shots: int, tasks: int, seed: int = 0) -> mfoc.Population:
    """A learn2learn ``Taskset`` as a population of tasks.

    Each of its tasks (x, y) is split: the first ``shots`` examples of each class are the support, the others the query.
    With ``num_tasks=-1`` tasks are drawn afresh; a finite set keeps the tasks it once described, as it does for
    learn2learn.

    Args:
        taskset: a ``learn2learn.data.Taskset``, or anything whose ``[i]`` and ``sample()`` give a task (x, y).
        shots: examples of each class in the support.
        tasks: tasks in a batch.
        seed: seeds the global generators that the task transforms draw from; they are put back.

    Raises:
        InvalidType: no task set.
        InvalidValue: a class with no example left for the query, tasks of different sizes.
    """
    if not hasattr(taskset, "sample") or not hasattr(taskset, "__getitem__"):
        raise InvalidType(f"taskset is a {type(taskset).__name__}; expected a learn2learn.data.Taskset")
    check_counts(shots=shots, tasks=tasks)
    check_seed(seed)

    def draw(step: int) -> mfoc.Particles:
        with seeded(mixed_seed(seed, step)):
            drawn = [_split(taskset.sample(), shots) for _ in range(tasks)]
        try:
            columns = [torch.stack(column) for column in zip(*drawn, strict=True)]
        except RuntimeError as error:
            raise InvalidValue(f"the tasks of a batch differ in size (ragged supports): {error}") from error
        like = columns[0] if columns[0].is_floating_point() else torch.zeros(())
        data = {"support": (columns[0], columns[1]), "query": (columns[2], columns[3])}
        return mfoc.Particles(like.new_zeros(tasks), data)

    return as_tasks(draw)


def _split(task: Any, shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support and query of one task, classes in order."""
    x, y = task[:2]
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


def _labelled(x: Any, y: Any) -> Pair:
    if y is None and not isinstance(x, Tensor | np.ndarray):
        if not hasattr(x, "__getitem__") or not hasattr(x, "__len__"):
            raise InvalidType(f"x is a {type(x).__name__}; expected inputs and labels, or a map-style dataset of pairs")
        x, y = torch.utils.data.default_collate([x[i] for i in range(len(x))])[:2]
    if y is None:
        raise InvalidType("y is None; expected integer labels [N]")
    inputs, labels = (torch.from_numpy(np.array(a)) if not isinstance(a, Tensor) else a for a in (x, y))
    if labels.dim() != 1 or len(labels) != len(inputs) or labels.is_floating_point():
        raise InvalidValue(
            f"labels of dtype {labels.dtype} and shape {tuple(labels.shape)} for inputs {tuple(inputs.shape)}; "
            "expected one integer for each input, [N]"
        )
    if not len(labels):
        raise InvalidValue("x is empty; expected at least one example")
    inputs = inputs.to(torch.get_default_dtype()) / 255 if inputs.dtype == torch.uint8 else inputs
    return inputs, labels.long().cpu()

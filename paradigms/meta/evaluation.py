"""Adaptation to new tasks, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, Particles, tree
from mfoc.checks import check_between, check_flag, check_instance, check_integer, kind_of
from mfoc.networks import refresh_averages
from mfoc.printing import table
from paradigms.meta.drawing import Progress, draw_adaptation
from paradigms.meta.formulations import MetaFormulation, checked_controls, to_module
from paradigms.meta.losses import TaskLoss
from paradigms.meta.task_laws import as_tasks, check_tasks
from paradigms.meta.task_laws import tasks as make_tasks
from paradigms.reporting import Estimate, progress_bar, student_interval


@dataclass(frozen=True)
class Adapted:
    """How good the network is after a number of inner steps.

    Attributes:
        steps: inner steps.
        loss: the query loss.
        accuracy: the share of the query that is classified right; None when targets are no classes.
        diverged: tasks whose loss is not finite; where there are any, the mean is infinite or NaN.
    """

    steps: int
    loss: Estimate
    accuracy: Estimate | None
    diverged: int = 0


@dataclass(frozen=True)
class Adaptation:
    """Query losses and accuracies after inner steps; print it, or ``.plot()`` it.

    ``table[10].loss.value`` is one of them.

    Attributes:
        rows: one for each number of steps.
        tasks: tasks.
        confidence: level of the intervals.
    """

    rows: list[Adapted]
    tasks: int
    confidence: float

    def __getitem__(self, steps: int) -> Adapted:
        for row in self.rows:
            if isinstance(steps, int) and row.steps == steps:
                return row
        raise KeyError(f"{steps!r}; the table has {[row.steps for row in self.rows]}")

    def __repr__(self) -> str:
        header = ("steps", "query loss", "" if self.rows[0].accuracy is None else "accuracy", "")
        notes = [f"({row.diverged} of {self.tasks} tasks diverged)" if row.diverged else "" for row in self.rows]
        rows = [(row.steps, row.loss, row.accuracy or "", note) for row, note in zip(self.rows, notes, strict=True)]
        head = f"Adaptation on {self.tasks} tasks ({100 * self.confidence:.0f}% intervals)"
        return f"{head}\n{table(header, rows)}"

    def plot(self, *, label: str = "meta-learned", beside: Mapping[str, Adaptation] | None = None) -> Any:
        """Loss, and accuracy where there is one, by inner step with intervals: a ``matplotlib.figure.Figure``.

        A hollow point has an unbounded interval (one task), a cross at the upper edge is a loss that diverged.

        Args:
            label: what this one is called.
            beside: others by name, as of a network that was not meta-learned.

        Raises:
            InvalidType: something else than adaptations by name.
            InvalidValue: others of another level of confidence, or called as this one is.
            MissingExtra: matplotlib is not installed.
        """
        check_instance(str, "a name", label=label)
        others = beside or {}
        if not isinstance(others, Mapping) or not all(isinstance(each, Adaptation) for each in others.values()):
            raise InvalidType(f"beside is {kind_of(beside)}; expected a dict, name -> what evaluate(...) returned")
        if label in others or any(each.confidence != self.confidence for each in others.values()):
            raise InvalidValue(f"beside holds {label!r}, or another level than {self.confidence:g}; expected neither")
        found = {name: _progress(each) for name, each in {label: self, **others}.items()}
        return draw_adaptation(found, tasks=self.tasks, confidence=self.confidence)


def evaluate(
    formulation: MetaFormulation,
    solution: Any,
    tasks: Any = None,
    *,
    steps: Sequence[int] = (1, 5, 10),
    batches: int = 1,
    confidence: float = 0.95,
    progress: bool = True,
) -> Adaptation:
    """The query loss after adaptation, at and beyond the inner steps that were trained for.

    Args:
        formulation: what ``maml`` or another function of this paradigm returned.
        solution: the solution, an iterate or controls.
        tasks: what ``maml`` takes; tasks that were not trained on. The formulation's own when None.
        steps: numbers of inner steps; 0 is the network before adaptation.
        batches: batches of the population, from step 0 on; each of their tasks is counted, none of them twice.
        confidence: level of the intervals.
        progress: show a progress bar where ``rich`` is installed.

    Raises:
        InvalidType, InvalidValue: wrong arguments.
    """
    controls = checked_controls(formulation, solution)
    wanted = list(steps) if isinstance(steps, Sequence) else [steps]
    if not wanted:
        raise InvalidValue(f"steps is {steps!r}; expected numbers of inner steps, such as (1, 5, 10)")
    for k in wanted:
        check_integer(0, 2**31 - 1, steps=k)
    check_integer(1, batches=batches)
    check_between(0, 1, confidence=confidence)
    check_flag(progress=progress)
    wanted = sorted(set(wanted))
    source = formulation.population if tasks is None else as_tasks(tasks)
    if source.size is not None and source.batch_size is not None:
        most = min(source.batches_per_epoch, -(-source.size // source.batch_size))
        if batches > most:
            raise InvalidValue(
                f"batches is {batches} and the tasks fill {most}; counting a task twice would make the intervals too "
                "short"
            )
    losses: dict[int, list[Tensor]] = {k: [] for k in wanted}
    hits: dict[int, list[Tensor]] = {k: [] for k in wanted}
    loop, counted = formulation.loop, set[int]()
    with torch.no_grad(), progress_bar("tasks", batches, shown=progress) as tick:
        for batch in range(batches):
            tasks_now = check_tasks(source(batch))
            z = (tasks_now if source.size is None else _new(tasks_now, counted)).data
            loop.check(controls, z)
            for k, state in loop.states(controls, z, wanted):
                losses[k].append(loop.query_loss(state, z))
                found = _right(loop.outputs(state, z), z["query"][1], loop.objective.loss)
                if found is not None:
                    hits[k].append(found)
            tick("")
    rows = []
    for k in wanted:
        sample = torch.cat(losses[k])
        accuracy = student_interval(torch.cat(hits[k]), confidence) if hits[k] else None
        rows.append(Adapted(k, student_interval(sample, confidence), accuracy, int((~sample.isfinite()).sum())))
    return Adaptation(rows, len(sample), confidence)


def adapt(formulation: MetaFormulation, solution: Any, support: Any, *, steps: int | None = None) -> nn.Module:
    """The network adapted to one task, an ordinary module in the mode of the network.

    Running averages of norms in training mode are those of the support at the adapted weights, so that ``.eval()`` is
    the network that was adapted.

    Args:
        formulation: what ``maml`` or another function of this paradigm returned.
        solution: the solution, an iterate or controls.
        support: the pair (x, y) of the task, ``[shots, ...]``.
        steps: inner steps; those of the formulation when None.

    Raises:
        InvalidType, InvalidValue: wrong arguments.
    """
    controls = checked_controls(formulation, solution)
    check_integer(1, steps=steps, optional=True)
    pair = isinstance(support, tuple | list) and len(support) == 2
    if not pair or not all(isinstance(leaf, Tensor) for leaf in tree.leaves(tuple(support))):
        raise InvalidType(f"support is {kind_of(support)}; expected a pair (x, y) of tensors [shots, ...]")
    one = tree.map(lambda leaf: leaf[None], tuple(support))
    z = make_tasks(one, one).data
    formulation.loop.check(controls, z)
    count = formulation.adapt_steps if steps is None else steps
    with torch.no_grad():
        ((_, state),) = formulation.loop.states(controls, z, [count])
    weights = {**controls["phi"], **{name: leaf[0] for name, leaf in state["fast"].items()}}
    adapted = to_module(formulation.net, weights)
    refresh_averages(adapted, [support[0]])
    return adapted


def _progress(found: Adaptation) -> Progress:
    rows = found.rows
    return Progress([r.steps for r in rows], [r.loss for r in rows], [r.accuracy for r in rows])


def _new(tasks: Particles, counted: set[int]) -> Particles:
    """The tasks that were not counted before; without shuffling the last batch begins anew with the first ones."""
    numbers = tasks.indices().tolist()
    new = [place for place, number in enumerate(numbers) if number not in counted]
    counted.update(numbers)
    return tasks if len(new) == len(numbers) else tasks[torch.tensor(new, device=tasks.indices().device)]


def _right(output: Any, target: Tensor, loss: TaskLoss) -> Tensor | None:
    """The share of right answers of each task ``[tasks]``, where targets are classes."""
    if not isinstance(output, Tensor) or output.dim() != 3:
        return None
    if loss.elementwise or target.is_floating_point() or target.dim() != 2:
        return None
    counted = loss.counted(target)
    if not loss.classes and bool((target[counted] < 0).any()):
        return None
    right = (output.argmax(2) == target) & counted
    return right.to(output.dtype).sum(1) / counted.sum(1)

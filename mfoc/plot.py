"""Figures. Each function returns a ``matplotlib.figure.Figure``, made without pyplot, so no global state is touched.

Results draw themselves, too: ``solution.plot()``, ``trajectory.plot()``, ``certificate.plot()`` and more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.certificate import Certificate
from mfoc.checks import check_callable, check_flag, check_instance, check_integer, check_tensor, kind_of
from mfoc.drawing import bands, clouds, intervals, lines, moving
from mfoc.drawing.names import names_for
from mfoc.drawing.scales import numbers
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, look, new_figure, tidy
from mfoc.pontryagin import Trajectory
from mfoc.problem import Problem, controls_for, tied
from mfoc.solving import Solution

__all__ = [
    "COLORS",
    "animate",
    "certificate",
    "cloud",
    "controls",
    "curves",
    "look",
    "new_figure",
    "principal_components",
    "solutions",
    "tidy",
]


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str = "wall time [s]",
    y_label: str = "objective J",
    title: str = "",
    log: bool = True,
    log_x: bool = False,
) -> Any:
    """Several curves on one pair of axes, such as the objective against time for several solvers.

    A curve that is named after a solver or a paradigm ("E-MSA", "adversarial") has that one's colour and marker, as
    in every figure.

    Args:
        series: name -> (x, y).
        x_label: with its unit.
        y_label: with its unit.
        title: title of the figure.
        log: logarithmic y axis, where all values are positive.
        log_x: logarithmic x axis, on which zero has a place (a solve begins at step 0).

    Raises:
        InvalidType: no curves.
        InvalidValue: x and y of different lengths.
    """
    check_instance(Mapping, "a dict, name -> (x, y)", series=series)
    check_instance(str, "a string", x_label=x_label, y_label=y_label, title=title)
    check_flag(log=log, log_x=log_x)
    if not series:
        raise InvalidValue("series is empty; expected at least one curve")
    return lines.curves(
        {str(name): _pair(name, pair) for name, pair in series.items()}, x_label, y_label, title, log, log_x
    )


def _pair(name: Any, pair: Any) -> tuple[Any, Any]:
    """Both columns of a curve as arrays."""
    own = f"series[{name!r}]"
    check_instance(tuple | list, "a pair (x, y) of numbers", **{own: pair})
    if len(pair) != 2:
        raise InvalidValue(f"{own} has {len(pair)} parts; expected a pair (x, y) of numbers")
    found = []
    for part in pair:
        if not hasattr(part, "__len__") or isinstance(part, str | bytes | Mapping):
            raise InvalidType(f"{own} holds {kind_of(part)}; expected numbers, a list or a tensor")
        try:
            found.append(numbers(part).reshape(len(part)))
        except (TypeError, ValueError) as error:
            raise InvalidType(f"{own} holds {kind_of(part)}; expected numbers, a list or a tensor [n]") from error
    if len(found[0]) != len(found[1]):
        raise InvalidValue(f"{own} has {len(found[0])} x and {len(found[1])} y values; they must agree")
    return found[0], found[1]


def solutions(found: Mapping[str, Solution]) -> Any:
    """J and the residual of some solves, by step and by second: ``solutions({"E-MSA": one, "Adam": other})``.

    Args:
        found: name -> what ``mfoc.solve`` returned.

    Raises:
        InvalidType: something that is not a solution, or a name that is no string.
        InvalidValue: there is none.
    """
    check_instance(Mapping, "a dict, name -> solution", found=found)
    if not found:
        raise InvalidValue("found is empty; expected at least one solution")
    check_instance(Solution, "what mfoc.solve returned", **{f"found[{name!r}]": one for name, one in found.items()})
    first, *others = found.values()
    return first.plot(*others, names=list(found))


def controls(problem: Problem, solution: Any = None, *, title: str = "controls") -> Any:
    """The controls over the stages, a panel for each leaf.

    A few numbers have a line each, of many the percentiles are drawn: of the numbers of a stage, or of the particles
    where each has a control of its own. A control that all stages share is drawn entry by entry, or as a histogram.

    Args:
        problem: the control problem.
        solution: a solution, an iterate, or controls; the problem's initial guess when None.
        title: of the figure.

    Raises:
        InvalidType: no problem, or no controls.
        InvalidValue: controls that are shaped otherwise than the problem's own.
        MissingExtra: matplotlib is not installed.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_instance(str, "a string", title=title)
    found = problem.controls if solution is None else controls_for(problem, solution)
    shared = problem.schedule is tied
    stages = [found] if shared else [problem.schedule(found, t) for t in range(problem.stages)]
    leaves = bands.by_stage(stages, [] if shared else _limits(problem), problem.per_particle)
    return bands.controls(leaves, shared=shared, title=title)


def _limits(problem: Problem) -> list[tuple[Any, Any]]:
    """Lower and upper bounds of each stage, shaped as its control; none where they are no box."""
    if problem.region is None or not problem.per_stage:
        return []
    found = []
    for t, stage in enumerate(problem.controls):
        try:
            sides = problem.limits(t)
        except InvalidValue:  # a ball, a simplex
            return []
        own = tree.leaves(stage)
        lead = int(problem.per_particle)
        sizes = [max(1, leaf.shape[lead:].numel()) for leaf in own]
        parts = [torch.split(side, sizes, -1) for side in sides]
        shaped = [tree.rebuild(stage, [p.reshape(leaf.shape) for p, leaf in zip(ps, own, strict=True)]) for ps in parts]
        found.append((shaped[0], shaped[1]))
    return found


def certificate(*certificates: Certificate, names: Sequence[str] = ()) -> Any:
    """Residual, gap and curvature of each stage with their intervals, one colour per certificate.

    An interval that leaves the axes ends in an arrow there, as one does that reaches zero on a logarithm.

    Args:
        *certificates: certificates of the same problem.
        names: one name for each; named after a solver, a certificate has that one's colour and marker.

    Raises:
        InvalidType: something that is not a certificate.
        InvalidValue: the number of names differs from the number of certificates, or they have different stages.
    """
    if not certificates or not all(isinstance(c, Certificate) for c in certificates):
        raise InvalidType("certificates: expected one or more mfoc.Certificate")
    called = names_for(names, [f"certificate {k + 1}" for k in range(len(certificates))])
    return intervals.certificates(certificates, called if names or len(certificates) > 1 else ())


def cloud(trajectory: Trajectory, labels: Tensor | None = None, *, stages: Sequence[int] | None = None) -> Any:
    """The state cloud as it is pushed through the stages.

    States of two numbers are seen as they are. Wider ones are seen in their two first principal components: those of
    all the stages shown together, on equal axes, or each stage in its own where they are not equally wide.

    Args:
        trajectory: what ``rollout`` returned; states are single tensors ``[N, ...]``.
        labels: classes ``[N]`` for the colours and markers; of more than ten, or of numbers, the colour is a scale.
        stages: which states to show; at most six, evenly spread, when None.

    Raises:
        InvalidType: states that are not single tensors, or labels that are no tensor.
        InvalidValue: labels that are not one for each particle, or stages that there are not.
    """
    states = _single(trajectory, "cloud")
    last = len(states) - 1
    if stages is not None:
        check_instance(Sequence, f"stages from 0 to {last}", stages=stages)
    shown = clouds.spread_over(last, 6) if stages is None else list(stages)
    if not shown or not all(isinstance(t, int) and 0 <= t <= last for t in shown):
        raise InvalidValue(f"stages is {stages}; expected stages from 0 to {last}")
    clouds.check_labels(labels, len(states[0]))
    figure = new_figure(max(3.2, 2.5 * len(shown)), 2.9)
    axes = list(figure.subplots(1, len(shown), squeeze=False)[0])
    clouds.snapshots(axes, clouds.view([states[t] for t in shown]), shown, last, labels)
    clouds.legend(figure, axes[-1], labels)
    return figure


def animate(
    trajectories: Trajectory | Mapping[str, Trajectory],
    path: str | PathLike[str],
    *,
    labels: Any = None,
    costates: Any = None,
    decorate: Callable[[str, Any], object] | None = None,
    frames: int = 48,
    fps: int = 16,
    dpi: int = 80,
) -> Path:
    """Writes a GIF of a cloud on its way through the stages, or of several beside one another; it loops.

    Between two stages particles are drawn on the straight line that joins them. States are seen as in ``cloud``; where
    they are not equally wide, each stage on its own scale.

    Args:
        trajectories: what ``rollout`` returned, or several by title.
        path: of the file, which ends in ".gif".
        labels: classes ``[N]`` for the colours; of several trajectories a dict of them, by title.
        costates: what ``mfoc.costates`` returned: an arrow at the mean of each class points where the cost-to-go
            falls, -p on average, for states of two numbers; of several trajectories a dict of them, by title.
        decorate: ``decorate(title, axes)`` draws what stays on a panel: a target, a wall.
        frames: how many pictures, the last of which stays for 2.5 seconds.
        fps: pictures a second.
        dpi: pixels per inch; a panel is 3.2 inches wide.

    Raises:
        InvalidType, InvalidValue: wrong arguments, or states that are not single tensors.
        StorageError: the file cannot be written.
        MissingExtra: matplotlib or Pillow is not installed.
    """
    several = dict(trajectories) if isinstance(trajectories, Mapping) else {"": trajectories}
    if not several:
        raise InvalidValue("trajectories is empty; expected at least one")
    check_instance(str | PathLike, "the path of a file", path=path)
    if Path(path).suffix.lower() != ".gif":
        raise InvalidValue(f"path is {str(path)!r}; expected a file that ends in .gif")
    check_callable("a function of a title and axes", optional=True, decorate=decorate)
    check_integer(2, 10_000, frames=frames)
    check_integer(1, 100, fps=fps)
    check_integer(10, 600, dpi=dpi)
    one = not isinstance(trajectories, Mapping)
    scenes = []
    for title, trajectory in several.items():
        states = _single(trajectory, "animate")
        own, arrows = _of(labels, title, one, "labels"), _of(costates, title, one, "costates")
        check_instance(list | tuple | None, "what mfoc.costates returned", costates=arrows)
        clouds.check_labels(own, len(states[0]))
        scenes.append(moving.scene(str(title), states, own, arrows))
    return moving.write(scenes, Path(path), decorate, frames=frames, fps=fps, dpi=dpi)


def _of(given: Any, title: str, one: bool, name: str) -> Any:
    if one or given is None:
        return given
    check_instance(Mapping, "a dict by title, as trajectories is", **{name: given})
    return given.get(title)


def _single(trajectory: Any, who: str) -> list[Tensor]:
    """The states of a trajectory, each a single tensor."""
    if not isinstance(trajectory, Trajectory):
        raise InvalidType(f"trajectory is {kind_of(trajectory)}; expected what mfoc.rollout returns")
    clouds.check_states(trajectory.states, len(trajectory.cost))
    states = clouds.tensors_of(trajectory.states)
    if states is None:
        raise InvalidType(
            f"trajectory: {who} draws states that are single tensors; got {tree.describe(trajectory.states[0])}. Take "
            "one leaf: mfoc.Trajectory([state[...] for state in trajectory.states], trajectory.cost); or "
            "trajectory.plot() draws the law of each"
        )
    return states


def principal_components(state: Tensor) -> Tensor:
    """The two first principal components of a cloud ``[N, ...]``: ``[N, 2]`` (one column is zero if there is one).

    Raises:
        InvalidType, InvalidValue: no tensor of finite real numbers.
    """
    check_tensor("a cloud [N, ...]", floating=False, state=state)
    if not state.dim():
        raise InvalidValue("state is a scalar; expected a cloud [N, ...]")
    flat = state.detach().flatten(1) if state.dim() > 1 else state.detach()[:, None]
    centred = flat.double() - flat.double().mean(0)
    left, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    scores = left[:, :2] * scale[:2]
    return scores if scores.shape[1] == 2 else torch.nn.functional.pad(scores, (0, 2 - scores.shape[1]))

"""Figures say what they show, whatever they are given."""

import itertools
import math
import runpy
import sys
import time
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mfoc
from mfoc import plot
from mfoc.drawing.moving import _panel, scene
from mfoc.figures import look, of_class, words
from tests.problems import linear_quadratic, mlp, mlp_net, normal, pytrees, swarm, tied

pytest.importorskip("matplotlib")
image = pytest.importorskip("PIL.Image")

D = torch.float64
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _warnings_are_errors(recwarn):
    """A layout that does not fit, or a scale without room, is told by a warning of matplotlib's."""
    yield
    assert not [w.message for w in recwarn if "layout" in str(w.message) or "limits" in str(w.message)]


def drawn(figure):
    """The figure, drawn: what matplotlib refuses it refuses then."""
    figure.canvas.draw()
    return figure


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def lines_of(axis):
    """The lines that have points."""
    return [line for line in axis.lines if len(line.get_xdata())]


def outside(axis):
    """Lines that have points above or below the axis."""
    low, high = sorted(axis.get_ylim())
    heights = [torch.as_tensor(line.get_ydata(), dtype=D) for line in lines_of(axis)]
    return [y for y in heights if bool((y[y.isfinite()] < low - 1e-12).any() or (y[y.isfinite()] > high + 1e-12).any())]


def solution(values, residuals, *, last=(0.5, 0.1), name="Adam", message="did all steps"):
    """A solution of that history."""
    history = [
        {"step": k, "value": value, "residual": residual, "seconds": 0.1 * k}
        for k, (value, residual) in enumerate(zip(values, residuals, strict=True))
    ]
    origin = {"solver": {"type": "Gradient", "optimizer": {"type": name}}}
    iterate = mfoc.Iterate(len(history), [], {}, origin=origin)
    return mfoc.Solution([], *last, mfoc.Status.MAX_STEPS, history, iterate, message)


def moving(*states):
    return mfoc.Trajectory(list(states), torch.zeros(len(states[0]), dtype=D))


# ---- solutions


def test_a_solution_draws_J_and_the_residual_by_step_and_by_second():
    found = solution([3.0, 2.0, 1.0], [1.0, 0.5, 0.2])
    figure = drawn(found.plot())
    assert all(word in texts(figure) for word in ("objective J", "residual", "step", "wall time [s]", "Adam"))
    value = lines_of(figure.axes[0])[0]
    assert list(value.get_xdata()) == [0, 1, 2, 3], "by step the line ends with the solution itself"
    assert list(value.get_ydata()) == [3.0, 2.0, 1.0, 0.5]
    assert value.get_color() == look("Adam")["color"]


@pytest.mark.parametrize(
    ("values", "residuals", "last"),
    [
        ([], [], (NAN, NAN)),
        ([], [], (1.0, 0.0)),
        ([1.0], [0.0], (1.0, 0.0)),
        ([2.0, NAN, INF], [1.0, NAN, INF], (2.0, 1.0)),
        ([-1.0, 1e6, -1e-9], [1e-300, 1e300, 0.0], (0.0, 0.0)),
        ([5.0] * 3000, [1e-3] * 3000, (5.0, 1e-3)),
    ],
    ids=["empty", "no step", "one", "not finite", "huge and negative", "constant and long"],
)
def test_any_history_is_drawn(values, residuals, last):
    figure = drawn(solution(values, residuals, last=last, message="word " * 80).plot())
    assert not [y for axis in figure.axes for y in outside(axis)]


def test_solutions_side_by_side_have_looks_of_their_own():
    found = {
        "SGD": solution([1.0], [1.0]),
        "E-MSA": solution([1.0], [1.0]),
        "mine, " + "long " * 30: solution([1], [1]),
    }
    figure = drawn(plot.solutions(found))
    looks = {(line.get_color(), line.get_marker()) for line in lines_of(figure.axes[0])}
    assert len(looks) == 3
    twice = drawn(found["SGD"].plot(found["E-MSA"]))
    assert "Adam 1" in texts(twice), "two solves by one solver are told apart"
    assert "Adam 2" in texts(twice)
    with pytest.raises(mfoc.InvalidValue, match="alike"):
        found["SGD"].plot(found["E-MSA"], names=["a", "a"])
    with pytest.raises(mfoc.InvalidType, match="others"):
        found["SGD"].plot("x")


# ---- curves


def test_curves_figure():
    figure = plot.curves({"a": ([0, 1], [1, 0.1]), "b": ([0, 2], [1, 0.2])}, title="two")
    assert all(word in texts(figure) for word in ("a", "b", "two", "wall time [s]", "objective J"))
    assert figure.axes[0].get_yscale() == "log"


def test_equal_curves_do_not_hide_one_another():
    """Beneath is the wider line, above it a narrower one with gaps, and each has its markers elsewhere."""
    x = list(range(100))
    first, second = lines_of(drawn(plot.curves({"a": (x, x), "b": (x, x)})).axes[0])
    assert first.get_linewidth() > second.get_linewidth()
    assert first.get_linestyle() == "-" != second.get_linestyle()
    assert first.get_markevery()[0] != second.get_markevery()[0]


def test_step_zero_is_on_a_logarithmic_axis():
    axis = drawn(plot.curves({"a": ([0, 1, 1000], [3.0, 2.0, 1.0])}, log_x=True)).axes[0]
    zero, one, end = (axis.transData.transform((x, 1.0))[0] for x in (0, 1, 1000))
    assert axis.bbox.x0 <= zero < one < end <= axis.bbox.x1
    assert (one - zero) > 0.1 * (end - zero), "zero and one are apart"


@pytest.mark.parametrize("values", [[], [NAN, NAN], [INF, 1.0], [-1.0, 0.0], [2.0, 2.0]])
def test_any_curve_is_drawn(values):
    drawn(plot.curves({"name " * 20: (list(range(len(values))), values)}, log_x=True))


@pytest.mark.parametrize("name", ["$", "5 $ and $ 6", r"$\frac$", r"$\bad$", r"a\$b $\frac$", "_^{", "$x_"])
def test_any_name_is_drawn(name, tmp_path):
    """Dollars are mathematics only where matplotlib can read it as such; else it would refuse when it draws."""
    one = solution([2.0, 1.0], [1.0, 0.1])
    drawn(one.plot(one, names=[name, "other"]))
    drawn(plot.curves({name: ([0, 1], [1, 2])}, x_label=name, y_label=name, title=name))
    drawn(plot.controls(free([{name: normal(2)}] * 2), title=name))
    plot.animate({name: moving(normal(5, 2), normal(5, 2))}, tmp_path / "a.gif", frames=2, dpi=20)


def test_mathematics_stays_mathematics():
    assert words(r"$\epsilon$ of 5") == r"$\epsilon$ of 5"
    assert words(r"$\bad$") == r"\$\bad\$"


def test_complex_numbers_are_no_curve():
    with pytest.raises(mfoc.InvalidType, match="series"):
        plot.curves({"a": ([0, 1], torch.zeros(2, dtype=torch.complex64))})


# ---- trajectories


@pytest.mark.parametrize(
    "states",
    [
        [normal(30), normal(30)],
        [normal(30, 1)] * 3,
        [normal(1, 2), normal(1, 2)],
        [normal(1, 5)] * 2,
        [normal(9, 2)] * 300,
        [torch.zeros(9, 2)] * 3,
        [normal(9, 3, 2, 2), normal(9, 5), normal(9, 1)],
        [normal(9, 2), torch.full((9, 2), NAN, dtype=D)],
        [torch.full((9, 4), INF, dtype=D)] * 2,
        [torch.arange(9), torch.arange(9)],
        [normal(5000, 2).float()] * 2,
    ],
    ids=[
        "scalar",
        "column",
        "one-particle",
        "one-wide",
        "long",
        "constant",
        "widths",
        "nan",
        "inf",
        "integers",
        "many",
    ],
)
def test_any_trajectory_is_drawn(states):
    trajectory = moving(*states)
    drawn(trajectory.plot(torch.arange(len(states[0])) % 3))
    drawn(plot.cloud(trajectory))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.bool, torch.complex64])
def test_states_of_any_dtype_are_drawn(dtype, tmp_path):
    trajectory = moving(*(normal(20, 2, seed=k).to(dtype) for k in range(2)))
    drawn(trajectory.plot())
    plot.animate(trajectory, tmp_path / "a.gif", frames=2, dpi=20)


def test_what_no_axis_can_show_is_counted_with_what_is_not_finite():
    figure = drawn(moving(normal(5, 2), torch.full((5, 2), 1e308, dtype=D)).plot())
    assert "5 of 5 not finite" in texts(figure)
    drawn(plot.curves({"a": ([0, 1, 2], [1.0, 1e307, -1e308])}))


@pytest.mark.parametrize("states", [[], [torch.zeros(0, 2)] * 2], ids=["no-state", "no-particle"])
def test_a_trajectory_of_nothing_is_refused(states, tmp_path):
    nothing = mfoc.Trajectory(states, torch.zeros(0))
    for draw in (nothing.plot, lambda: plot.cloud(nothing), lambda: plot.animate(nothing, tmp_path / "a.gif")):
        with pytest.raises(mfoc.InvalidValue, match="trajectory has"):
            draw()


def test_the_quantiles_of_a_large_cloud_take_no_time():
    clouds = [normal(100_000, 2, seed=k) for k in range(8)]
    began = time.thread_time()
    moving(*clouds).plot()
    assert time.thread_time() - began < 2


def test_before_and_after_have_equal_axes():
    figure = drawn(plot.cloud(moving(normal(50, 2), 9 * normal(50, 2)), stages=[0, 1]))
    before, after = figure.axes
    assert (before.get_xlim(), before.get_ylim()) == (after.get_xlim(), after.get_ylim())
    assert before.get_xlim()[1] - before.get_xlim()[0] == pytest.approx(before.get_ylim()[1] - before.get_ylim()[0])


def test_the_law_that_is_drawn_is_that_of_the_cloud():
    cloud = normal(400, 1, seed=3)
    axis = moving(cloud, 2 * cloud + 1).plot().axes[0]
    mean = next(line for line in lines_of(axis) if line.get_label() == "mean")
    assert mean.get_ydata() == pytest.approx([float(cloud.mean()), float(2 * cloud.mean() + 1)])
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(min(float((s * cloud + m).quantile(0.05)) for s, m in ((1, 0), (2, 1))))


def test_classes_are_told_apart_and_none_is_left_out():
    labels = torch.arange(4000) % 2  # every second: what is drawn of many is not every second particle
    axis = plot.cloud(moving(normal(4000, 2)), labels).axes[0]
    sizes = [len(part.get_offsets()) for part in axis.collections]
    assert len(sizes) == 2
    assert min(sizes) > 0.4 * sum(sizes)
    assert (
        len({tuple(of_class(k).values()) for k in range(10)}) == len({of_class(k)["marker"] for k in range(10)}) == 10
    )
    drawn(plot.cloud(moving(normal(40, 2)), torch.arange(40)))  # of more than ten the colour is a scale


def test_a_tree_of_states_is_drawn_leaf_by_leaf_and_no_cloud():
    problem, particles = pytrees()
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    figure = drawn(trajectory.plot())
    assert "token" in texts(figure)
    with pytest.raises(mfoc.InvalidType, match=r"trajectory.*one leaf"):
        plot.cloud(trajectory)


def test_cloud_figure():
    problem, particles = mlp()
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    figure = plot.cloud(trajectory, particles.data)
    assert "class" in texts(figure)
    assert len(figure.axes) == 6
    assert len(plot.cloud(trajectory, stages=[0, 5]).axes) == 2
    with pytest.raises(mfoc.InvalidValue, match="labels"):
        trajectory.plot(particles.data[:-1])


def test_principal_components_are_those_of_the_covariance():
    x = normal(50, 4) * torch.tensor([3.0, 2.0, 1.0, 0.5])
    scores = plot.principal_components(x)
    top = torch.linalg.eigvalsh(torch.cov(x.mT)).flip(0)[:2]
    assert torch.allclose(scores.var(0), top)
    assert plot.principal_components(normal(5)).shape == (5, 2)


# ---- controls


def free(controls, **more):
    return mfoc.Problem(lambda t, x, u, z: x, lambda x, z: x[:, 0], controls, **more)


def test_controls_are_drawn_number_by_number_with_their_bounds():
    controls = [torch.tensor([0.1 * t, -0.2 * t], dtype=D) for t in range(5)]
    figure = drawn(plot.controls(free(controls, bounds=mfoc.Box(-1.0, 1.0))))
    first, second, low, high = lines_of(figure.axes[0])
    assert list(first.get_ydata()) == pytest.approx([0.1 * t for t in range(5)])
    assert list(second.get_ydata()) == pytest.approx([-0.2 * t for t in range(5)])
    assert [low.get_ydata()[0], high.get_ydata()[0]] == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("controls", "more"),
    [
        ([torch.zeros((), dtype=D)], {}),
        ([normal(3)], {}),
        ([normal(40, 30, seed=t) for t in range(3)], {}),
        ([normal(7, seed=t) for t in range(200)], {"bounds": mfoc.Box(-9.0, 9.0)}),
        ([normal(2, seed=t) for t in range(2000)], {}),
        ([normal(50, 2, seed=t) for t in range(4)], {"per_particle": True, "bounds": mfoc.Box(-9.0, 9.0)}),
        ([normal(50, 20, seed=t) for t in range(4)], {"per_particle": True}),
        ([{"w": normal(2)}, {"b": normal(3), "w": normal(4)}], {"bounds": mfoc.Ball(9.0, "l2")}),
        ([{f"leaf {'x' * 60} {k}": normal(2) for k in range(9)}], {}),
        (normal(3), {"schedule": mfoc.tied, "horizon": 4}),
        ({"w": normal(300)}, {"schedule": mfoc.tied, "horizon": 4}),
        (normal(3, 2), {"schedule": lambda u, t: u[t], "horizon": 3}),
    ],
    ids=[
        "scalar",
        "T=1",
        "many-numbers",
        "bounded",
        "long",
        "particles",
        "wide-particles",
        "tree",
        "leaves",
        "tied",
        "wide-tied",
        "schedule",
    ],
)
def test_any_controls_are_drawn(controls, more):
    problem = free(controls, **more)
    drawn(plot.controls(problem))
    assert "u" in texts(drawn(plot.controls(problem, problem.controls, title="of mine")))


def test_controls_of_a_solution_and_of_a_network():
    for problem, *_ in (swarm(), mlp(), tied()):
        drawn(plot.controls(problem, mfoc.Iterate(0, problem.controls, {})))
    with pytest.raises(mfoc.InvalidValue, match="controls"):
        plot.controls(problem, normal(99))


# ---- certificates


def measure(value, low=None, high=None):
    return mfoc.Measure(value, value if low is None else low, value if high is None else high)


@cache
def certified():
    problem, particles, *_ = linear_quadratic()
    return mfoc.certify(problem, problem, particles)


def certificate(stages):
    """A certificate whose stages have these residuals, gaps and curvatures."""
    found = certified()
    made = [
        replace(found.stages[0], name=name, residual=residual, gap=gap, curvature=curvature)
        for name, residual, gap, curvature in stages
    ]
    return replace(found, stages=made)


AWKWARD = [
    (
        "a name that is longer than its room",
        measure(1e-3, 0.0, INF),
        measure(INF),
        measure(-1.0, -INF, 2.0),
    ),
    ("b", measure(0.0, 0.0, 0.0), measure(NAN, NAN, NAN), measure(0.0)),
    ("c", measure(1e3, 1e-30, 1e9), measure(1e-16, 0.0, 1.0), measure(5.0, -3.0, 1e7)),
]


@pytest.mark.parametrize(("size", "ratio"), [(1.0, 1.0), (1e-12, 1e-2), (1e8, 1e-9)])
def test_ticks_about_zero_do_not_meet(size, ratio):
    """On the symmetric logarithm of the curvature, whatever decades it spans."""
    made = [(str(k), measure(1.0), measure(1.0), measure(v)) for k, v in enumerate((-size, ratio * size, size))]
    axis = drawn(certificate(made).plot()).axes[2]
    boxes = [label.get_window_extent() for label in axis.get_yticklabels() if label.get_text()]
    assert len(boxes) >= 3
    assert not [1 for low, high in itertools.pairwise(sorted(boxes, key=lambda box: box.y0)) if low.y1 > high.y0]


def test_intervals_stay_on_the_axes():
    figure = drawn(certificate(AWKWARD).plot())
    for axis in figure.axes:
        low, high = axis.get_ylim()
        assert not outside(axis)
        ends = [y for part in axis.collections for path in part.get_paths() for y in path.vertices[:, 1]]
        assert all(low - 1e-12 <= y <= high * (1 + 1e-12) for y in ends)
    shown = texts(figure)
    assert all(word in shown for word in ("∞", "–", "…", "95%"))


@pytest.mark.parametrize("stages", [AWKWARD[1:2], AWKWARD * 40, [("d", measure(NAN), measure(INF), measure(NAN))]])
def test_any_certificate_is_drawn(stages):
    one = certificate(stages)
    drawn(one.plot(one, one, names=["initial guess", "E-MSA", "x" * 80]))


def test_certificate_figure():
    data = (normal(20, 3), torch.arange(20) % 2)
    found = mfoc.certify_module(mlp_net(), F.cross_entropy, data, groups=5)
    figure = plot.certificate(found, found, names=["one", "other"])
    shown = texts(figure)
    for word in ("residual", "gap", "curvature", "stage", "95%", "one", "other", "∞"):
        assert word in shown
    assert math.isinf(found.stages[0].gap.value)


# ---- what moves


def test_an_animation_begins_and_ends_where_the_cloud_does(tmp_path):
    left, right = torch.zeros(5, 2).double(), torch.zeros(5, 2).double()
    left[:, 0], right[:, 0] = -1.0, 1.0
    path = plot.animate(moving(left, right), tmp_path / "a.gif", frames=5, dpi=40, costates=[left, right])
    with image.open(path) as film:
        assert film.n_frames == 5
        assert film.info["loop"] == 0
        where = []
        for k in (0, 4):
            film.seek(k)
            pixels = torch.as_tensor(list(film.convert("RGB").getdata())).view(film.height, film.width, 3)
            blue = (pixels[..., 2] - pixels[..., 0] > 80).nonzero()[:, 1].double()
            where.append(float(blue.mean()) / film.width)
    assert where[0] < 0.45
    assert where[1] > 0.65


def test_the_arrow_is_the_mean_costate(tmp_path):
    """One for each class, from its mean; of a class whose costates are zero there is none, and no warning."""
    state, labels = normal(6, 2), torch.arange(6) % 2
    costates = [torch.where(labels[:, None] == 0, torch.tensor([2.0, 0.0], dtype=D), 0.0)] * 2
    seen = scene("", [state, state], labels, costates)
    assert seen.arrows[0].tolist() == [[-1.0, 0.0], [0.0, 0.0]]
    figure = plot.new_figure(3, 3)
    move = _panel(figure.subplots(), seen)
    move(0.0)
    with_it = drawn(figure).canvas.buffer_rgba().tobytes()
    (quiver,) = (part for part in figure.axes[0].collections if hasattr(part, "set_UVC"))
    quiver.set_visible(False)
    assert drawn(figure).canvas.buffer_rgba().tobytes() != with_it, "the arrow is seen"
    assert not seen.arrows[-1].any(), "at the end there is nothing to go for"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (costates, [p.half() for p in costates], [math.nan * p for p in costates]):
            moved = moving(state.to(given[0].dtype), state.to(given[0].dtype))
            plot.animate(moved, tmp_path / "a.gif", labels=labels, costates=given, frames=2, dpi=20)


@pytest.mark.parametrize("place", ["taken/a.gif", "folder.gif"])
def test_a_path_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(mfoc.StorageError, match=place):
        plot.animate(moving(normal(5, 2), normal(5, 2)), tmp_path / place, frames=2, dpi=20)


def test_pillow_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(mfoc.MissingExtra, match="PIL"):
        plot.animate(moving(normal(5, 2), normal(5, 2)), tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", ["mp4", "svg", "png", ""])
def test_what_is_no_gif_is_refused(suffix, tmp_path):
    with pytest.raises(mfoc.InvalidValue, match=r"\.gif"):
        plot.animate(moving(normal(5, 2)), tmp_path / f"a.{suffix}")


def test_what_cannot_move_is_refused(tmp_path):
    good = moving(normal(5, 2), normal(5, 2))
    for said, change in (
        ("costates", {"costates": [normal(5, 2)]}),
        ("finite", {"trajectories": moving(torch.full((5, 2), NAN), normal(5, 2))}),
        ("labels", {"labels": torch.zeros(4)}),
    ):
        with pytest.raises(mfoc.MfocError, match=said):
            plot.animate(**{"trajectories": good, "path": tmp_path / "a.gif", **change})
    plot.animate({"one": good, "other": moving(normal(5, 3), normal(5, 7))}, tmp_path / "b.gif", frames=2, dpi=30)


@pytest.mark.slow
def test_the_pictures_are_made(tmp_path, monkeypatch):
    """The script of the README's pictures, in smoke mode; a test of its own network keeps it to seconds."""
    monkeypatch.setenv("MFOC_SMOKE", "1")
    script = Path(__file__).parents[1] / "tutorials" / "pictures.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "idea.png").read_bytes().startswith(b"\x89PNG")
    with image.open(tmp_path / "moving.gif") as film:
        assert film.n_frames > 1
    for name, limit in (("idea.png", 300_000), ("moving.gif", 800_000)):
        committed = script.parent / "pictures" / name
        assert committed.stat().st_size < limit


def test_bad_arguments():
    with pytest.raises(mfoc.InvalidType, match="certificates"):
        plot.certificate("x")
    problem, particles = pytrees()
    with pytest.raises(mfoc.InvalidType, match="trajectory"):
        plot.cloud(mfoc.rollout(problem, problem.controls, particles))
    with pytest.raises(mfoc.InvalidType, match="series"):
        plot.curves({"a": ([0, 1], ["x", "y"])})
    with pytest.raises(mfoc.InvalidType, match="found"):
        plot.solutions({"a": 1})

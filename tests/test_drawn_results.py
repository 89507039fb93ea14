"""Every public result draws itself, at the edge too, in the library's look."""

import dataclasses
import inspect
import math
import sys
import warnings

import pytest
import torch
from torch.testing import assert_close

import mfoc.analysis.information
import mfoc.analysis.kernel
import mfoc.analysis.noise
import mfoc.analysis.propagation
import mfoc.hjb
import mfoc.lq
import mfoc.meanfield
import paradigms.adversarial
import paradigms.bayesian
import paradigms.meta
from mfoc import InvalidType, InvalidValue
from paradigms.adversarial import accuracy_curves
from paradigms.bayesian.samplers.drawing import running_evidence
from tests import drawn_cases as cases

matplotlib = pytest.importorskip("matplotlib")
CASES = {**cases.CORE, **cases.ANALYSIS, **cases.PARADIGMS}
SLOW = {"diagnosis"}
TABLEAU = {matplotlib.colors.to_hex(color) for color in matplotlib.colormaps["tab10"].colors}


def marked(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name


def inside(axis: object, line: object) -> bool:
    """Whether the finite points of a line lie in its axes; on logarithmic ones intervals may end at the edge."""
    if line.get_transform() != axis.transData or "log" in (axis.get_xscale(), axis.get_yscale()):
        return True
    points = torch.as_tensor(line.get_xydata())
    points = points[points.isfinite().all(1)]
    limits = torch.tensor([sorted(axis.get_xlim()), sorted(axis.get_ylim())], dtype=points.dtype)
    low, high = limits.unbind(1)
    slack = 1e-6 * (high - low)
    return bool(((points >= low - slack) & (points <= high + slack)).all())


def shows_something(axis: object) -> bool:
    lines = any(torch.as_tensor(line.get_xydata()).isfinite().all(1).any() for line in axis.lines)
    return lines or bool(axis.patches or axis.collections or axis.images or axis.texts)  # "nothing finite to show"


@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_a_result_draws_itself(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        figure = CASES[name]()
        figure.draw_without_rendering()
    for axis in figure.axes:
        assert all(map(math.isfinite, (*axis.get_xlim(), *axis.get_ylim())))
        named = (
            axis.get_ylabel()
            or axis.get_title()
            or any(label.get_text().strip("0123456789.-−") for label in axis.get_yticklabels())
        )
        assert named, "a vertical axis without a name"
        assert axis.get_xlabel() or len(figure.axes) > 1, "no horizontal axis has a name"
        assert shows_something(axis)
        assert all(inside(axis, line) for line in axis.lines), "something is cut off"
        several = len(axis.get_legend_handles_labels()[1]) > 1 and not axis.get_yticklabels()[0].get_text().isalpha()
        assert (
            not several
            or any(each.get_legend() for each in figure.axes)
            or figure.legends
            or axis.get_ylim()[0] > axis.get_ylim()[1]
        )
        used = {matplotlib.colors.to_hex(line.get_color()).lower() for line in axis.lines}
        assert not used & TABLEAU, "a colour of matplotlib's own"


@pytest.mark.parametrize("name", [name for name in CASES if "," not in name and " of " not in name])
def test_without_matplotlib_each_says_what_is_missing(name, monkeypatch):
    for module in ("matplotlib", *(loaded for loaded in sys.modules if loaded.startswith("matplotlib."))):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(mfoc.MissingExtra, match="matplotlib"):
        CASES[name]()


# What is public, a record, and not drawn.
LEFT_OUT = {
    "Grid": "where states are",
    "Riccati": "matrices; LinearQuadratic.path draws what they do",
    "DensityProblem": "a problem",
    "Alignment": "part of GradientNoise, which draws it",
    "Scale": "part of NoiseScales",
    "Escape": "two numbers, drawn by FlatSharp",
    "ModifiedEquation": "functions; mfoc.plot.cloud draws its paths",
    "BlockDiagnosis": "a row of Diagnosis",
    "FixedPoint": "a point of SignalPropagation",
    "LayerInformation": "a row of InformationPlane",
    "Bounds": "two numbers of a row",
    "Binned": "an estimator",
    "KDE": "an estimator",
    "InformationBottleneck": "a problem",
    "Rates": "two numbers",
    "KernelPredictor": "settings; what it fits is drawn",
    "Prediction": "of a kernel: FittedKernel, which has the inputs, draws it",
    **dict.fromkeys(("AdaGradRule", "AdamRule", "PlainRule", "IMQ", "RBF", "PyroIMQ", "PyroRBF", "TRADES"), "settings"),
    **dict.fromkeys(("Potential", "LogLikelihood", "NegativeLogLikelihood"), "a function"),
    "Ensemble": "networks; Prediction is drawn",
}


def records():
    """Public records that are found, not used: nothing that steps, is called, is read out or makes draws."""
    rooms = (
        mfoc.analysis.information, mfoc.analysis.kernel, mfoc.analysis.noise, mfoc.analysis.propagation,
        mfoc.hjb, mfoc.lq, mfoc.meanfield,
        paradigms.adversarial, paradigms.bayesian, paradigms.meta,
    )  # fmt: skip
    works = {"readout", "maximise", "step", "draw", "update", "__call__", "value", "energy", "to_pyro"}
    for kind, name in {
        kind: name for room in rooms for name, kind in vars(room).items() if inspect.isclass(kind)
    }.items():
        record = not issubclass(kind, mfoc.Formulation | mfoc.Problem) and (
            dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
        )
        if record and not any(works & vars(base).keys() for base in kind.__mro__):
            yield name, kind


@pytest.mark.parametrize(("name", "kind"), list(records()))
def test_a_public_record_is_drawn_or_left_out_for_a_reason(name, kind):
    assert hasattr(kind, "plot") != (name in LEFT_OUT and kind is not paradigms.bayesian.Prediction)


# ---- that what is drawn is what was found


def test_curves_of_robustness_are_its_tables():
    first, *others = cases.radii()
    (axis,) = others[0].plot(first, *others[1:]).axes  # in any order
    drawn = {line.get_label(): line.get_xydata() for line in axis.lines if not line.get_label().startswith("_")}
    for attack, points in drawn.items():
        assert_close(points[:, 0].tolist(), [0.0, 0.1, 0.2, 0.3, 0.4])
        found = [100 * table[attack].value for table in (first, *others)]
        assert_close(points[:, 1].tolist(), [95.0, *found])


def test_tables_that_do_not_belong_together_are_refused():
    first, other = cases.radii()[:2]
    with pytest.raises(InvalidValue, match="one at each radius"):
        first.plot(first)
    with pytest.raises(InvalidValue, match="one norm"):
        first.plot(dataclasses.replace(other, ball=mfoc.Ball(0.2, "l2")))
    with pytest.raises(InvalidType, match="evaluate"):
        first.plot("PGD")
    with pytest.raises(InvalidValue, match="APGD"):
        accuracy_curves({"standard": [first]}, attack="APGD")
    with pytest.raises(InvalidType, match="name of a network"):
        accuracy_curves([first])


def test_the_strongest_attack_is_the_one_that_leaves_the_least():
    table = cases.table(0.1, {"clean": 190, "weak": 180, "strong": 20})
    (axis,) = accuracy_curves({"net": table}).axes
    assert_close(axis.lines[0].get_ydata().tolist(), [95.0, 10.0])


def test_running_evidence_ends_at_the_evidence():
    found = cases.evidence(400)
    counts, running, errors = running_evidence(found.log_weights)
    assert counts[-1] == 400
    assert_close((float(running[-1]), float(errors[-1])), (found.log_z, found.error))
    part = cases.Evidence.of(found.x[:20], found.log_weights[: int(counts[20])], None)
    assert_close(float(running[20]), part.log_z)


def test_bands_of_the_posterior_and_of_the_noise_are_apart():
    x, prediction = cases.regression()
    (axis,) = prediction.plot(x.flip(0)[:, None]).axes  # inputs in any order
    dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
    order = x.flip(0).argsort()
    edge = prediction.mean + 2 * (prediction.epistemic + prediction.aleatoric).sqrt()
    assert_close(torch.as_tensor(dashed[0].get_ydata()), edge[order])
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert_close(float(band.max()), float((prediction.mean + 2 * prediction.epistemic.sqrt()).max()))


def test_predictions_that_cannot_be_drawn_are_refused():
    x, prediction = cases.regression()
    with pytest.raises(InvalidValue, match="one number for each"):
        prediction.plot(torch.zeros(50, 2))
    with pytest.raises(InvalidValue, match="of classes"):
        cases.classes()[1].plot(data=(x, x))
    with pytest.raises(InvalidValue, match="one observation for each"):
        prediction.plot(data=torch.zeros(3))


def test_adaptations_are_drawn_where_they_are():
    found = cases.adaptation(0, 1, 5)
    (axis,) = found.plot().axes
    line = next(line for line in axis.lines if line.get_label() == "meta-learned")
    assert_close(line.get_xydata().tolist(), [[0.0, 1.0], [1.0, 0.5], [5.0, 1 / 6]])
    with pytest.raises(InvalidValue, match="meta-learned"):
        found.plot(beside={"meta-learned": found})
    with pytest.raises(InvalidType, match="beside"):
        found.plot(beside=[found])


def test_an_infinite_end_is_a_hollow_point():
    figure = cases.adaptation(1, width=math.inf).plot()
    assert any(line.get_markerfacecolor() == "white" for line in figure.axes[0].lines)


def test_signals_have_the_fixed_points_of_theory():
    theory = mfoc.analysis.propagation.SignalPropagation("relu", 2.0)
    lengths, correlations, layers = theory.plot(5).axes
    points = [line.get_xydata()[0].tolist() for axis in (lengths, correlations) for line in axis.lines[2:]]
    assert_close(points, [[theory.q_star] * 2, [theory.c_star] * 2])
    assert_close(layers.lines[1].get_ydata().tolist(), theory.iterate(5, 1.0, 0.5).c.tolist())


def test_a_batch_of_the_noise_scale_buys_half_of_the_best_step():
    found = cases.scales()
    (axis,) = found.plot().axes
    marks = [line.get_xydata()[0].tolist() for line in axis.lines if line.get_marker() in "os"]
    assert marks == [[found.simple.value, 50.0], [found.curved.value, 50.0]]
    assert_close(100 * found.lr(round(found.curved.value)) / found.best_lr, 50.0)


def test_margins_are_of_points_left_out():
    found = cases.kernel_fit(2, count=20, labels=True)
    (axis,) = found.plot().axes
    right = (found.leave_one_out().argmax(1) == found.targets.argmax(1)).sum()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [f"right: {right}", f"wrong: {20 - right}"]

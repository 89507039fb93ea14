"""The diagram says at every point what SignalPropagation says there, and is drawn."""

import math
import time
from itertools import product

import pytest
import torch
from torch import nn

from mfoc.analysis.propagation import PhaseDiagram, SignalPropagation, critical_line, phase_diagram
from mfoc.analysis.propagation.theory import points as module
from mfoc.errors import InvalidType, InvalidValue

FIELDS = ("q_star", "chi_1", "chi_q", "c_star", "chi_c", "xi_q", "xi_c")
TOLERANCE = {"q_star": 1e-11, "chi_1": 1e-11, "chi_q": 1e-11, "c_star": 1e-9, "chi_c": 1e-9}


def grid(low, high, count):
    return torch.linspace(low, high, count, dtype=torch.float64)


def assert_agrees(diagram, activation, places):
    for row, column in places:
        weight, bias = float(diagram.weight_variances[row]), float(diagram.bias_variances[column])
        signal = SignalPropagation(activation, weight, bias)
        for name in FIELDS:
            ours, theirs = float(getattr(diagram, name)[row, column]), getattr(signal, name)
            # a depth scale is only as well known as it is short: relative to 1e-8 max(1, xi)
            allowed = TOLERANCE.get(name, 1e-8 * max(1.0, abs(theirs))) * max(1.0, abs(theirs))
            same = ours == theirs or (math.isnan(ours) and math.isnan(theirs))
            assert same or abs(ours - theirs) <= allowed, (name, weight, bias, ours, theirs)
        assert diagram.phase(row, column) == signal.phase


def some(diagram, count, seed=0):
    """Random points, and some on the axis without biases."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(diagram.weight_variances), (count,), generator=generator).tolist()
    columns = torch.randint(len(diagram.bias_variances), (count,), generator=generator).tolist()
    return [(row, 0 if k % 4 == 0 else column) for k, (row, column) in enumerate(zip(rows, columns, strict=True))]


def gated(u):
    """Not monotone, of an unusual form."""
    return u * torch.sigmoid(1.7 * u) + 0.1 * torch.cos(u)


@pytest.mark.parametrize(
    "activation", ["tanh", "erf", "sin", "sigmoid", "silu", "gelu", "softplus", "relu", nn.LeakyReLU(0.2), gated]
)
def test_every_point_is_what_signal_propagation_says(activation):
    diagram = phase_diagram(activation, grid(0.1, 3.9, 39), grid(0, 2, 21))
    assert_agrees(diagram, activation, some(diagram, 12))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["hardtanh", "elu"])
def test_activations_with_kinks(activation):
    diagram = phase_diagram(activation, grid(0.3, 2.5, 12), grid(0, 1, 40))
    assert_agrees(diagram, activation, [place for place in some(diagram, 12) if place[1] > 0])


def test_a_few_points_of_an_activation_with_kinks_need_no_table():
    diagram = phase_diagram("hardtanh", [0.8, 1.0, 2.0], [0.0, 0.3])
    assert_agrees(diagram, "hardtanh", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)])
    assert float(diagram.c_star[2, 0]) == 0.0


def test_the_closed_form_of_the_sine():
    """V(q) = (1 - exp(-2 q)) / 2, E phi'^2 = (1 + exp(-2 q)) / 2."""
    weights, biases = grid(0.5, 3, 26), grid(0.1, 1, 10)
    diagram = phase_diagram(torch.sin, weights, biases)
    fall = torch.exp(-2 * diagram.q_star)
    w = weights[:, None]
    torch.testing.assert_close(w * (1 - fall) / 2 + biases, diagram.q_star, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(w * (1 + fall) / 2, diagram.chi_1, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(w * fall, diagram.chi_q, rtol=1e-13, atol=1e-13)
    # E sin u1 sin u2 = exp(-q) sinh(q c): the correlation map at c*, and its slope
    q, c = diagram.q_star, diagram.c_star
    torch.testing.assert_close((w * (-q).exp() * (q * c).sinh() + biases) / q, c, rtol=0, atol=1e-9)
    torch.testing.assert_close(w * (-q).exp() * (q * c).cosh(), diagram.chi_c, rtol=0, atol=1e-9)


def test_relu_is_critical_at_one_point_and_diverges_beyond():
    diagram = phase_diagram("relu", [1.0, 2.0, 3.0], [0.0, 0.5])
    assert diagram.critical_line.tolist() == [[2.0, 0.0]]
    assert diagram.q_star.tolist() == [[0.0, 1.0], [1.0, math.inf], [math.inf, math.inf]]
    assert diagram.codes.tolist() == [[-1, -1], [0, 0], [1, 1]]
    assert diagram.xi_c[1].tolist() == [math.inf, math.inf]
    assert math.isnan(diagram.xi_q[2, 0])
    assert_agrees(diagram, "relu", [(row, column) for row in range(3) for column in range(2)])


@pytest.mark.parametrize("short", [1e-9, 1e-13])
def test_where_the_fixed_point_is_too_far_out_there_is_none(short):
    """A slope at infinity just below one: SignalPropagation refuses it, and the diagram has no phase."""
    diagram = phase_diagram("softplus", [1.0, 2 - short], [5.0])
    assert diagram.q_star.isnan().tolist() == [[False], [True]]
    assert "beyond 1e9 at 1 points" in str(diagram)
    with pytest.raises(InvalidValue, match="beyond 1e9"):
        diagram.phase(1, 0)
    with pytest.raises(InvalidValue, match=r"beyond 1e\+09"):
        _ = SignalPropagation("softplus", 2 - short, 5.0).q_star


def test_of_several_fixed_points_the_one_that_one_leads_to():
    """GELU with 2 < sigma_w^2: small variances stay, larger ones diverge, and q = 1 is among either."""
    weights = torch.tensor([2.05, 2.1, 2.2, 2.3], dtype=torch.float64)
    diagram = phase_diagram("gelu", weights, grid(0, 0.2, 9))
    assert bool(diagram.q_star.isinf().any())
    assert bool(diagram.q_star.isfinite().any())
    assert_agrees(diagram, "gelu", [(row, column) for row in range(4) for column in range(0, 9, 2)])


def test_two_fixed_points_about_to_meet():
    """At the fold of GELU's map, between the last bias with a small fixed point and the first without."""
    low, high = 0.0, 0.5
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if math.isfinite(SignalPropagation("gelu", 2.1, middle).q_star) else (low, middle)
    diagram = phase_diagram("gelu", [2.1], [low - 1e-6, low - 1e-9, high + 1e-9, high + 1e-6])
    assert diagram.q_star[0].isfinite().tolist() == [True, True, False, False]
    assert_agrees(diagram, "gelu", [(0, 0), (0, 3)])


def test_a_length_map_that_falls():
    """exp(-u^2): V falls with q, so that no bracket tells where iterating ends."""
    diagram = phase_diagram(lambda u: torch.exp(-u * u), [0.5, 2.0, 8.0], [0.0, 0.3])
    assert_agrees(diagram, lambda u: torch.exp(-u * u), [(row, column) for row in range(3) for column in range(2)])


def test_near_the_critical_point_nothing_is_left_unconverged():
    diagram = phase_diagram("tanh", [1 - 1e-3, 1.0, 1 + 1e-3, 1.01], [0.0, 1e-8, 1e-4])
    moved = SignalPropagation("tanh", 1.0).moments.second_moment(diagram.q_star)
    excess = diagram.weight_variances[:, None] * moved + diagram.bias_variances - diagram.q_star
    assert float((excess.abs() / diagram.q_star.clamp(min=1e-12)).max()) < 1e-14
    assert diagram.phase(1, 0) == "critical"
    assert float(diagram.q_star[1, 0]) == 0.0


def test_the_critical_line_parts_the_phases():
    diagram = phase_diagram("tanh", grid(0.5, 4, 36), grid(0, 1, 11))
    line = diagram.critical_line
    assert bool((line[1:] > line[:-1]).all())
    for weight, bias in line[5::120].tolist():
        assert critical_line("tanh", bias_variance=bias)[0] == pytest.approx(weight, rel=1e-9)
    least = {
        column: float(diagram.weight_variances[diagram.codes[:, column] == 1][0]) for column in range(1, 10)
    }  # of the chaotic points in a column
    for column, weight in least.items():
        nearest = (line[:, 1] - diagram.bias_variances[column]).abs().argmin()
        assert 0 <= weight - float(line[nearest, 0]) < 0.11


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
def test_no_critical_line_within_the_grid(activation):
    diagram = phase_diagram(activation, grid(0.2, 0.9, 4), grid(0.1, 1, 4))
    assert diagram.critical_line.shape == (0, 2)
    assert "none within the grid" in str(diagram)


def test_a_wrong_table_is_noticed(monkeypatch):
    """Fixed points are checked against the moments themselves, and found again one by one."""

    def wrong(table, weights, biases):
        found = exact(table, weights, biases)
        return type(found)(found.q * (1 + 1e-6), found.unknown)

    exact = module.lengths
    monkeypatch.setattr(module, "lengths", wrong)
    diagram = phase_diagram("tanh", grid(0.5, 3, 4), grid(0.1, 1, 3))
    assert_agrees(diagram, "tanh", [(row, column) for row in range(4) for column in range(3)])


def test_grids_may_be_lists_and_tensors_of_any_float_type():
    a = phase_diagram("tanh", [1.5, 2.5], [0.25])
    b = phase_diagram(nn.Tanh(), torch.tensor([1.5, 2.5]), torch.tensor([0.25], dtype=torch.float16))
    torch.testing.assert_close(a.q_star, b.q_star, rtol=0, atol=1e-13)
    assert all(getattr(b, name).dtype == torch.float64 for name in FIELDS)


def test_it_is_told_in_a_few_words():
    diagram = phase_diagram("relu", grid(0.5, 3, 11), grid(0, 1, 5))
    assert isinstance(diagram, PhaseDiagram)
    assert len(repr(diagram)) < 500
    assert "critical line: (2, 0)" in str(diagram)
    assert "diverges with depth" in str(diagram)
    shares = [diagram.share(phase) for phase in ("ordered", "critical", "chaotic")]
    assert sum(shares) == pytest.approx(1)
    with pytest.raises(InvalidValue, match="expected one of 'ordered'"):
        diagram.share("liquid")
    with pytest.raises(InvalidValue, match="row"):
        diagram.phase(11, 0)


@pytest.mark.parametrize(
    ("weights", "biases", "error", "message"),
    [
        ([0.0, 1.0], [0.0], InvalidValue, "weight_variances holds 0"),
        ([-1.0, 1.0], [0.0], InvalidValue, "weight_variances holds -1"),
        ([1.0], [-0.1, 1.0], InvalidValue, "bias_variances holds -0.1"),
        ([1.0, math.nan], [0.0], InvalidValue, "holds nan"),
        ([1.0, math.inf], [0.0], InvalidValue, "holds inf"),
        ([], [0.0], InvalidValue, "at least one entry"),
        ([1.0], torch.zeros(0), InvalidValue, "at least one entry"),
        (torch.ones(2, 2), [0.0], InvalidValue, "one axis"),
        (torch.tensor(1.0), [0.0], InvalidValue, "one axis"),
        ([2.0, 1.0], [0.0], InvalidValue, "ascending"),
        ([1.0], [0.5, 0.5], InvalidValue, "holds a number twice"),
        (1.0, [0.0], InvalidType, "weight_variances is a float"),
        ("12", [0.0], InvalidType, "weight_variances is a str"),
        (["a", "b"], [0.0], InvalidType, "weight_variances"),
        ([[1.0], [1.0, 2.0]], [0.0], InvalidType, "weight_variances"),
        ([1.0], None, InvalidType, "bias_variances"),
        (torch.tensor([True]), [0.0], InvalidType, "torch.bool"),
        (torch.tensor([1j]), [0.0], InvalidType, "complex"),
    ],
)
def test_grids_that_are_none(weights, biases, error, message):
    with pytest.raises(error, match=message):
        phase_diagram("tanh", weights, biases)


@pytest.mark.parametrize("activation", ["tanj", torch.sign, lambda u: torch.tensor(u.numpy())])
def test_activations_without_a_derivative(activation):
    with pytest.raises(InvalidValue):
        phase_diagram(activation, [1.0], [0.0])


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "sigmoid"])
def test_the_figure(activation, tmp_path):
    pytest.importorskip("matplotlib")
    diagram = phase_diagram(activation, grid(0.1, 4, 40), grid(0, 2, 20))
    figure = diagram.plot()
    (axis,) = figure.axes
    assert axis.get_xlim() == (pytest.approx(0.1), pytest.approx(4))
    assert "sigma_w" in axis.get_xlabel()
    assert "sigma_b" in axis.get_ylabel()
    words = " ".join(text.get_text() for text in axis.texts)
    assert "ordered" in words
    assert ("chaotic" in words) == (activation != "sigmoid")
    drawn = [line for line in axis.lines if "critical" in str(line.get_label())]
    assert len(drawn) == (0 if activation == "sigmoid" else 1)
    figure.savefig(tmp_path / "figure.png")


def test_a_figure_needs_an_area():
    with pytest.raises(InvalidValue, match="at least 2 x 2"):
        phase_diagram("relu", [1.0], [0.0, 1.0]).plot()


def test_a_large_grid_takes_no_loop_over_points():
    """75,000 points: a second, where one by one they would take an hour."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begin = time.thread_time()
        diagram = phase_diagram("tanh", grid(0.02, 6, 300), grid(0, 2, 250))
        taken = time.thread_time() - begin
    finally:
        torch.set_num_threads(threads)
    assert taken < 20  # it is below one second on a quiet machine: see the benchmark
    assert_agrees(diagram, "tanh", some(diagram, 8, seed=1))


def test_odd_activations_are_orthogonal_down_to_the_critical_point():
    weights = torch.tensor([0.9, 1 + 1e-6, 1 + 1e-5, 1.02, 2.0], dtype=torch.float64)
    diagram = phase_diagram("tanh", weights, torch.tensor([0.0, 0.1], dtype=torch.float64))
    for i, j in product(range(5), range(2)):
        signal = SignalPropagation("tanh", float(weights[i]), (0.0, 0.1)[j])
        found = [float(part.reshape(5, 2)[i, j]) for part in (diagram.c_star, diagram.chi_c)]
        assert found == pytest.approx([signal.c_star, signal.chi_c], abs=1e-9)

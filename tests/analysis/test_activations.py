"""What an activation is, where it has kinks, and what is refused."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mfoc.analysis.activations import Activation
from mfoc.errors import InvalidType, InvalidValue


def named(value):
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(
    ("given", "kinks"),
    [
        (torch.tanh, []),
        ("silu", []),
        (nn.GELU(approximate="tanh"), []),
        (nn.Softplus(), []),
        (lambda u: torch.sin(30 * u), []),
        (lambda u: torch.tanh(50 * u), []),
        (torch.relu, [0]),
        (nn.Hardtanh(-0.5, 2), [-0.5, 2]),
        (F.relu6, [0, 6]),
        (nn.Hardswish(), [-3, 3]),
        (nn.ELU(0.5), [0]),
        (nn.CELU(), [0]),  # its first derivative is continuous, its second is not
        (lambda u: u / (1 + u.abs()), [0]),
        (lambda u: torch.where(u > 0.3, u, 0.3 + (u - 0.3) ** 3 + (u - 0.3)), [0.3]),  # the third derivative jumps
        (lambda u: 1e-9 * torch.relu(u - 1), [1]),
        (lambda u: u + (u - 25).abs(), [25]),
    ],
    ids=named,
)
def test_kinks_are_found(given, kinks):
    assert Activation.of(given).kinks == pytest.approx(kinks, abs=1e-9)


@pytest.mark.parametrize(
    ("given", "family", "slopes"),
    [
        ("linear", "homogeneous", (1, 1)),
        (nn.LeakyReLU(0.2), "homogeneous", (0.2, 1)),
        (lambda u: torch.maximum(u, 0 * u), "homogeneous", (0, 1)),
        (torch.abs, "homogeneous", (-1, 1)),
        (nn.PReLU(init=0.3), "homogeneous", (0.3, 1)),
        (torch.special.erf, "erf", (0, 0)),
        (lambda u: u * (1 + torch.erf(u / 2**0.5)) / 2, "gelu", (0, 1)),
        (nn.GELU(approximate="tanh"), "other", (0, 1)),
        (lambda u: torch.relu(u) + 1e-9, "other", (0, 1)),
        (nn.Softshrink(0.5), "other", (1, 1)),
        (torch.sin, "other", (0, 0)),
        (lambda u: u**3, "other", (torch.inf, torch.inf)),
        (nn.LogSigmoid(), "other", (1, 0)),
    ],
    ids=named,
)
def test_closed_forms_are_recognised_by_what_a_function_does(given, family, slopes):
    found = Activation.of(given)
    assert found.family == family
    assert found.slopes == pytest.approx(slopes, abs=1e-6)


def test_the_slope_is_the_derivative():
    u = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(Activation.of("tanh").slope(u), 1 - torch.tanh(u) ** 2)
    torch.testing.assert_close(Activation.of(nn.ReLU(inplace=True)).slope(u), (u > 0).double())


def test_modules_are_left_alone():
    module = nn.PReLU(init=0.3)
    Activation.of(module)
    assert module.weight.dtype == torch.float32
    assert module.weight.requires_grad
    assert module.weight.grad is None
    in_place = nn.ReLU(inplace=True)
    Activation.of(in_place)
    assert in_place.inplace


def test_one_activation_is_studied_once():
    assert Activation.of(nn.Tanh()) is Activation.of(nn.Tanh())
    assert Activation.of(torch.tanh) is Activation.of(torch.tanh)
    assert Activation.of(nn.ELU(0.5)) is not Activation.of(nn.ELU(0.6))


def test_it_can_be_pickled():
    again = pickle.loads(pickle.dumps(Activation.of(nn.Hardtanh())))
    assert again.kinks == (-1, 1)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("tahn", InvalidValue, "torch does not have"),
        (nn.Tanh, InvalidType, r"make an instance, Tanh\(\)"),
        (3, InvalidType, "expected a name such as 'tanh'"),
        (torch.sign, InvalidValue, "jumps at"),
        ("round", InvalidValue, "jumps at"),
        (nn.Hardshrink(), InvalidValue, "jumps at -0.5, 0.5"),
        (nn.Softplus(1.0, 5.0), InvalidValue, "jumps at 5"),  # by 7e-3, against its slope
        (nn.Softmax(-1), InvalidValue, "every entry alone"),
        (nn.Linear(12, 12), InvalidValue, "fails on a float64 tensor"),
        (lambda u: u - u.mean(), InvalidValue, "every entry alone"),
        (nn.Dropout(0.5), InvalidValue, "random"),
        (nn.RReLU(), InvalidValue, "random"),
        (nn.GLU(), InvalidValue, "same shape"),
        (torch.log, InvalidValue, "not finite"),
        (lambda u: u.detach(), InvalidValue, "no derivative"),
        (lambda u: torch.from_numpy(u.numpy()), InvalidValue, "no derivative"),
        (lambda u: torch.sin(500 * u).abs(), InvalidValue, "kinks"),
    ],
    ids=named,
)
def test_what_is_no_activation_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        Activation.of(given)


def test_a_scripted_module_is_an_activation():
    u = torch.linspace(-1, 1, 5, dtype=torch.float64)
    assert torch.equal(Activation.of(torch.jit.script(nn.Tanh())).function(u), u.tanh())


@pytest.mark.parametrize(
    "make",
    [lambda: lambda u: torch.tanh(1.5 * u), nn.PReLU, lambda: nn.LeakyReLU(0.125), lambda: nn.Sequential(nn.Tanh())],
    ids=["function", "weights", "plain", "container"],
)
def test_what_is_found_in_inference_mode_is_what_is_found_outside(make):
    u = torch.linspace(-2, 2, 7, dtype=torch.float64)
    with torch.inference_mode():
        inside = Activation.of(make())
        slopes = inside.slope(u), inside.slope(u.clone())
    outside = Activation.of(make())
    assert (inside.kinks, inside.slopes, inside.family) == (outside.kinks, outside.slopes, outside.family)
    for slope in (*slopes, inside.slope(u)):
        assert torch.equal(slope, outside.slope(u))

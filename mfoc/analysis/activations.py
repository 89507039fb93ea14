"""Activations as functions of one number: their derivative, where they have kinks, and which have closed forms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfoc.checks import kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.printing import by_identity
from mfoc.seeding import seeded

Family = Literal["homogeneous", "erf", "gelu", "other"]
ActivationLike: TypeAlias = "str | Callable[[Tensor], Tensor] | nn.Module | Activation"

_NAMED = "tanh, relu, leaky_relu, gelu, silu, erf, sigmoid, softplus, elu, selu, hardtanh, sin"
_JUMP = 1e-7  # relative to the size of what jumps: rounding is far below, what an integral feels above
_ORDERS = 4  # the function and three derivatives: a kink in a higher one is beyond what the quadrature rules feel
_TOO_MANY = 400
_SOFTPLUS, _EXACT = 20, 40  # torch's default threshold, and one at which e^-u is below rounding of u
_MEANT = 10  # a threshold of softplus from which on its linear end stands for the function itself


@by_identity
@dataclass(frozen=True, eq=False)
class Activation:
    """A function of one number, applied to every entry of a tensor.

    Attributes:
        name: what it is called in messages.
        function: the activation, on float64 tensors.
        kinks: where it or one of its first three derivatives jumps, in ascending order.
        family: "homogeneous" (slopes[0] u below zero and slopes[1] u above: linear, ReLU, leaky ReLU, the absolute
            value), "erf", "gelu" (the exact one), which have closed forms, or "other".
        slopes: its slope far to the left and far to the right, where it has one; infinite where it grows faster.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    kinks: tuple[float, ...]
    family: Family
    slopes: tuple[float, float]

    @staticmethod
    def of(activation: ActivationLike) -> Activation:
        """The activation that a user names or holds.

        Args:
            activation: a name out of torch or torch.nn.functional ("tanh", "gelu"), a function of a tensor, or a
                module, whose weights, if it has any, are those of now.

        Raises:
            InvalidType: none of these.
            InvalidValue: an unknown name; what does not act on every entry alone, is random, jumps or has no
                derivative.
        """
        if isinstance(activation, Activation):
            return activation
        # What is found is kept, and looked up wherever: it may not be that of a mode without derivatives.
        with torch.inference_mode(False):
            return Activation._of(activation)

    @staticmethod
    def _of(activation: Any) -> Activation:
        if isinstance(activation, type):
            raise InvalidType(
                f"activation is the class {activation.__name__}; make an instance, {activation.__name__}()"
            )
        if isinstance(activation, str):
            return _known(_by_name(activation))
        if isinstance(activation, nn.Module):
            plain = type(activation).__module__ == "torch.nn.modules.activation" and not list(activation.parameters())
            return _described(activation) if plain else _studied(_frozen(activation), type(activation).__name__)
        if not callable(activation):
            raise InvalidType(
                f"activation is {kind_of(activation)}; expected a name such as 'tanh', a function of a tensor, or an "
                "nn.Module that acts on every entry alone"
            )
        try:
            return _known(activation)
        except TypeError:  # not hashable
            return _studied(activation, _name_of(activation))

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def slope(self, u: Tensor) -> Tensor:
        """Its derivative at every entry of ``u`` [...]; at a kink, what torch says of it."""
        return derivative(self.function, u, 1)


@dataclass(frozen=True, eq=False)
class _Copying:
    """The function on a copy: it may work in place."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, u: Tensor) -> Tensor:
        return self.function(u.clone())


def _by_name(name: str) -> Callable[[Tensor], Tensor]:
    extra: dict[str, Callable[[Tensor], Tensor]] = {"linear": nn.Identity(), "identity": nn.Identity()}
    for holder in (F, torch, torch.special):
        found = extra.get(name) or getattr(holder, name, None)
        if callable(found) and not name.startswith("_") and not isinstance(found, type):
            function: Callable[[Tensor], Tensor] = found
            return function
    raise InvalidValue(f"activation is {name!r}, which torch does not have; expected one such as {_NAMED}")


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _frozen(module: nn.Module) -> nn.Module:
    frozen = copy.deepcopy(module).double()
    for parameter in frozen.parameters():  # a scripted module has no requires_grad_ of its own
        parameter.requires_grad_(False)
    return frozen


_BY_DESCRIPTION: dict[tuple[type[nn.Module], str, bool], Activation] = {}


def _described(module: nn.Module) -> Activation:
    """Torch's own activation modules without weights, known by their printed form."""
    key = (type(module), repr(module), module.training)
    if key not in _BY_DESCRIPTION:
        plain = copy.deepcopy(module)
        if getattr(plain, "inplace", False):
            plain.inplace = False  # type: ignore[assignment]
        _BY_DESCRIPTION[key] = _studied(plain, type(module).__name__)
    return _BY_DESCRIPTION[key]


@lru_cache(maxsize=256)
def _known(function: Callable[[Tensor], Tensor]) -> Activation:
    return _studied(function, _name_of(function))


def _studied(function: Callable[[Tensor], Tensor], name: str) -> Activation:
    function = _check_elementwise(_exact(function), name)
    kinks = _find_kinks(function, name)
    slopes = _far_slopes(function)
    return Activation(name, function, kinks, _family(function, kinks), slopes)


def _exact(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Torch's softplus without its linear end: beyond the threshold it drops e^-threshold, a jump quadrature feels.

    A threshold below 10 bends the function visibly: it is what the user wants, and stays.
    """
    kind = getattr(function, "func", function)  # a partial, as read off a graph
    if kind is F.softplus:
        given = dict(getattr(function, "keywords", {}))
        threshold = given.get("threshold", _SOFTPLUS)
        if not getattr(function, "args", ()) and _MEANT <= threshold < _EXACT:
            return partial(F.softplus, **{**given, "threshold": _EXACT})
    elif type(kind) is nn.Softplus and _MEANT <= kind.threshold < _EXACT:
        return nn.Softplus(kind.beta, _EXACT)
    return function


# ---- what an activation has to be


def _check_elementwise(function: Callable[[Tensor], Tensor], name: str) -> Callable[[Tensor], Tensor]:
    """Refuses what is no function of each entry alone with a derivative; the function itself otherwise."""
    where = f"activation {name!r}"
    u = torch.linspace(-2.3, 2.9, 12, dtype=torch.float64, device="cpu")
    kept = u.clone()
    try:
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's of a softmax, which is refused below
            whole, again = function(u.clone()), function(u.clone())
            some = function(kept[4:].flip(0).reshape(2, 4))
    except Exception as error:  # whatever the user's function raises
        raise InvalidValue(f"{where} fails on a float64 tensor of shape [12] or [2, 4]: {error}") from error
    if not isinstance(whole, Tensor) or whole.shape != u.shape or not whole.is_floating_point():
        raise InvalidValue(f"{where} turns a tensor [12] into {kind_of(whole)}; expected a tensor of the same shape")
    if not bool(whole.isfinite().all()):
        raise InvalidValue(f"{where} is not finite on [-2.3, 2.9]; expected a function on all real numbers")
    if not torch.equal(whole, again):
        raise InvalidValue(f"{where} is random: two calls differ; give what it is on average, or its evaluation mode")
    if some.shape != (2, 4) or not torch.allclose(some.reshape(-1).flip(0), whole[4:], rtol=1e-12, atol=1e-12):
        raise InvalidValue(f"{where} does not act on every entry alone, as a softmax or a norm does not")
    try:
        with torch.enable_grad():
            differentiable = function(u.clone().requires_grad_() * 1).requires_grad  # a copy: it may work in place
    except RuntimeError:
        differentiable = False
    if not differentiable:
        raise InvalidValue(f"{where} has no derivative that torch can take; write it with torch's functions")
    return _Copying(function)


def derivative(function: Callable[[Tensor], Tensor], u: Tensor, order: int) -> Tensor:
    """The derivative of that order at every entry; zero where nothing depends on it any more.

    Raises:
        RuntimeError: torch has no derivative of that order.
    """
    with torch.inference_mode(False), torch.enable_grad():
        probe = u.detach().clone().requires_grad_(order > 0)
        value = function(probe)
        for left in range(order - 1, -1, -1):
            if not value.requires_grad:
                return torch.zeros_like(u)
            (slope,) = torch.autograd.grad(value.sum(), probe, create_graph=left > 0, allow_unused=True)
            value = torch.zeros_like(u) if slope is None else slope
    return value.detach()


def _cells() -> tuple[Tensor, Tensor]:
    """Where kinks are looked for: fine around zero, coarse up to 1e4. No edge is a number that people choose."""
    near = torch.linspace(-40.0123, 40.0377, 4002, dtype=torch.float64, device="cpu")
    far = torch.logspace(1.603, 4.003, 400, dtype=torch.float64, device="cpu")
    edges = torch.cat([-far.flip(0), near, far])
    return edges[:-1], edges[1:]


def _find_kinks(function: Callable[[Tensor], Tensor], name: str) -> tuple[float, ...]:
    """Every place where the function or one of its first derivatives jumps: a jump does not shrink with the cell."""
    found: list[float] = []
    for order in range(_ORDERS):
        try:
            places = _jumps(function, order)
        except RuntimeError as error:
            if order <= 1:
                raise InvalidValue(f"activation {name!r} has no derivative: {error}") from error
            break
        _refuse_jumps(name, places if order == 0 else _discontinuities(function, places))
        found += places
    merged: list[float] = []
    for place in sorted(found):
        rounded = 0.0 if abs(place) < 1e-12 else place
        if not merged or rounded - merged[-1] > 1e-9 * max(1.0, abs(rounded)):
            merged.append(rounded)
    if len(merged) > _TOO_MANY:
        raise InvalidValue(f"activation {name!r} has more than {_TOO_MANY} kinks; expected at most that many")
    return tuple(merged)


def _discontinuities(function: Callable[[Tensor], Tensor], places: list[float]) -> list[float]:
    """Those kinks at which the function itself jumps, too little, against its slope, for the search to follow."""
    kinks = torch.tensor(places, dtype=torch.float64, device="cpu")
    step = 1e-10 * kinks.abs().clamp(min=1.0)
    sides = function(kinks - step), function(kinks + step)
    changes = (sides[1] - sides[0]).abs() > _JUMP * torch.maximum(sides[0].abs(), sides[1].abs()).clamp(min=1.0)
    return [place for place, change in zip(places, changes.tolist(), strict=True) if change]


def _refuse_jumps(name: str, places: list[float]) -> None:
    if places:
        shown = ", ".join(f"{place:.6g}" for place in places[:3])
        raise InvalidValue(
            f"activation {name!r} jumps at {shown}{', ...' * (len(places) > 3)}; expected a continuous function: "
            "at a jump it has no derivative, and chi is infinite"
        )


def _jumps(function: Callable[[Tensor], Tensor], order: int) -> list[float]:
    low, high = _cells()
    at_low, at_high = (derivative(function, edge, order) for edge in (low, high))
    size = _sizes(at_low, low)
    finite = at_low.isfinite() & at_high.isfinite()  # a function may overflow far out
    low, high, at_low, at_high, size = (part[finite] for part in (low, high, at_low, at_high, size))
    for _ in range(60):
        kept = (at_high - at_low).abs() > _JUMP * size
        low, high, at_low, at_high, size = (part[kept] for part in (low, high, at_low, at_high, size))
        middle = (low + high) / 2
        if not len(low):
            return []
        if bool(((middle == low) | (middle == high)).all()):
            break
        at_middle = derivative(function, middle, order)
        left = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
        low, at_low = torch.where(left, low, middle), torch.where(left, at_low, at_middle)
        high, at_high = torch.where(left, middle, high), torch.where(left, at_middle, at_high)
    return [float(place) for place in ((low + high) / 2)]


def _sizes(values: Tensor, places: Tensor) -> Tensor:
    """How large the values are about every place: rounding is relative to it."""
    values = values.abs().nan_to_num(nan=0.0, posinf=0.0)
    around = torch.nn.functional.max_pool1d(values[None, None], 101, stride=1, padding=50)[0, 0]
    return around.clamp(min=max(1e-300, float(values[places.abs() < 40].max())))


def _far_slopes(function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """The slopes at minus and plus infinity: zero where it grows more slowly than u, infinite where faster."""

    def limit(sign: float) -> float:
        near, middle, far = function(
            sign * torch.tensor([1e12, 2e12, 4e12], dtype=torch.float64, device="cpu")
        ).tolist()
        first, second = sign * (middle - near) / 1e12, sign * (far - middle) / 2e12
        if max(abs(first), abs(second)) < 1e-5:
            return 0.0
        return second if abs(second - first) <= 1e-3 * abs(first) else torch.inf

    return limit(-1.0), limit(1.0)


def _family(function: Callable[[Tensor], Tensor], kinks: tuple[float, ...]) -> Family:
    u = torch.linspace(-7.03, 7.01, 301, dtype=torch.float64, device="cpu")
    value = function(u)

    def same(other: Tensor) -> bool:
        return bool(((value - other).abs() <= 4e-16 * (1 + other.abs())).all())

    left, right = (
        -function(torch.tensor([-1.0], dtype=u.dtype, device="cpu")),
        function(torch.tensor([1.0], dtype=u.dtype, device="cpu")),
    )
    if all(kink == 0 for kink in kinks) and same(torch.where(u < 0, left * u, right * u)):
        return "homogeneous"
    if same(torch.erf(u)):
        return "erf"
    return "gelu" if same(F.gelu(u)) else "other"

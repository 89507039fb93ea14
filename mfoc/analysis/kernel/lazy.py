"""Lazy or rich: how far the kernel turns while a network is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.analysis.kernel.doors import private_copy
from mfoc.analysis.kernel.empirical import empirical_ntk
from mfoc.analysis.kernel.taps import plainly
from mfoc.checks import check_instance, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.figures import COLORS, new_axes
from mfoc.networks.problem import to_module
from mfoc.printing import by_identity
from mfoc.problem import HasControls

_LAZY, _RICH = 0.01, 0.1  # of the index: a turn by 8 degrees, by 26 degrees
_STILL = 1e-3  # a change of the outputs, as a share of their size, by which nothing has been learned


@by_identity
@dataclass(frozen=True, eq=False)
class Laziness:
    """How the kernel moved along a training.

    Attributes:
        drift: ||Theta_t - Theta_0|| / ||Theta_0|| in the Frobenius norm ``[T]``.
        turn: 1 - <Theta_t, Theta_0> / (||Theta_t|| ||Theta_0||) ``[T]``, in [0, 1] as both are positive semidefinite.
        scale: ||Theta_t|| / ||Theta_0|| ``[T]``.
        alignment: centred alignment of the kernel, summed over outputs, with the targets, in [-1, 1] ``[T]`` (Cortes,
            Mohri & Rostamizadeh 2012, "Algorithms for learning kernels based on centered alignment", definition 4);
            None without targets.
        moved: ||f_t - f_0|| / ||f_0||, how far the outputs moved ``[T]``; infinite where f_0 is zero and f_t is not.
    """

    drift: Tensor
    turn: Tensor
    scale: Tensor
    alignment: Tensor | None
    moved: Tensor

    @property
    def index(self) -> float:
        """From 0, lazy, to 1, rich: how far the kernel has turned at the end, ``turn[-1]``.

        In lazy training (Chizat, Oyallon & Bach 2019, arXiv:1812.07956) a network follows its first linearisation: the
        features of the end are those of the start. A kernel that is only scaled has the same features and, up to a
        learning rate, the same dynamics, so that its turn is what counts, not its drift (the kernel distance of Fort et
        al. 2020, arXiv:2010.15110); a drift by r without scaling is a turn by about r^2 / 2.
        """
        return float(self.turn[-1])

    @property
    def regime(self) -> str:
        """One of "lazy" (index up to .01), "between", "rich" (from .1); "untrained" where the outputs did not move."""
        if float(self.moved.max()) < _STILL:
            return "untrained"
        return "lazy" if self.index <= _LAZY else "rich" if self.index >= _RICH else "between"

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        if self.regime == "untrained":
            return "untrained: the outputs have moved by less than a thousandth of their size, so nothing can be said"
        why = {
            "lazy": "the kernel is nearly that of the start: training is about linear",
            "rich": "the kernel turned: features were learned",
            "between": "the kernel turned a little",
        }[self.regime]
        return f"{self.regime}: index {self.index:.2g} on a scale from 0 (lazy) to 1 (rich); {why}"

    def __str__(self) -> str:
        last = f"kernel drift {float(self.drift[-1]):.3g}, scale {float(self.scale[-1]):.3g}"
        aligned = ""
        if self.alignment is not None:
            aligned = f"; alignment with the targets {float(self.alignment[0]):.3g} -> {float(self.alignment[-1]):.3g}"
        moved = f"moved by {float(self.moved[-1]):.3g} of their size"
        if math.isinf(float(self.moved[-1])):  # networks that are centred at their start
            moved = "moved away from zero"
        return f"{self.verdict}\n{last}, outputs {moved}{aligned}"

    def plot(self) -> Any:
        """Drift, turn and alignment along the training, a ``matplotlib.figure.Figure``."""
        figure, (axis,) = new_axes(6.4, 4.0)
        axis.set(xlabel="place in the trajectory", ylabel="change of the kernel, alignment")
        curves = {"kernel drift  ‖Θ − Θ₀‖ / ‖Θ₀‖": self.drift, "turn  1 − cos(Θ, Θ₀)": self.turn}
        if self.alignment is not None:
            curves["alignment with the targets"] = self.alignment
        for (name, curve), color, marker in zip(curves.items(), COLORS, "osD", strict=False):
            mark = {"marker": marker, "markersize": 4, "markevery": max(1, len(curve) // 15)}
            axis.plot(curve.tolist(), color=color, label=name, **mark)
        axis.axhspan(0, _LAZY, color="#dddddd", linewidth=0, zorder=0, label=f"lazy: turn up to {_LAZY:g}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(self.verdict.split(";")[0], fontsize=10)
        axis.legend(frameon=False)
        return figure


def laziness(
    net: nn.Module,
    trajectory: Sequence[Any],
    x: Tensor,
    y: Tensor | None = None,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
    trace: bool = False,
    batch_size: int | None = None,
    memory: int | None = None,
) -> Laziness:
    """How far the kernel of a network moved while it was trained.

    Args:
        net: the network, whose weights do not matter here.
        trajectory: where training stood, first to last, two or more of: modules like ``net``, state dicts (buffers or
            parameters that one does not name are those of ``net``), controls of ``mfoc.from_module(net, ...)``, and
            what has controls: iterates of ``mfoc.iterate``, solutions. (A module that is trained in place is one
            module: give copies.)
        x: samples ``[N, ...]``.
        y: targets ``[N]`` or ``[N, ...]``; whole numbers ``[N]`` are classes.
        stages: those given to ``mfoc.from_module``, for controls.
        trace: compare kernels summed over outputs, ``[N, N]``.
        batch_size: as in ``empirical_ntk``.
        memory: as in ``empirical_ntk``.

    Returns:
        Drift, turn and alignment along the trajectory, and a verdict.

    Raises:
        InvalidType: something in the trajectory is none of these.
        InvalidValue: fewer than two of them, those of another network, y that does not belong to x; as
            ``empirical_ntk``.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    check_instance(list | tuple, "a list of modules, state dicts, controls or iterates", trajectory=trajectory)
    if len(trajectory) < 2:
        raise InvalidValue(f"trajectory has {len(trajectory)} entries; expected the start of training and later ones")
    if len({id(entry) for entry in trajectory}) < 2:
        raise InvalidValue("trajectory holds one object again and again; give copies, copy.deepcopy(net), as it trains")
    target = None if y is None else _target_kernel(y, x)
    first: Tensor | None = None
    start: Tensor | None = None
    rows = []
    for place, entry in enumerate(trajectory):
        module = _module(net, entry, place, stages)
        try:
            theta = empirical_ntk(module, x, trace=trace, batch_size=batch_size, memory=memory).double()
        except (InvalidValue, InvalidType) as error:  # a training that diverged, say: from where on
            raise type(error)(f"trajectory[{place}]: {error}") from error
        with plainly(), torch.no_grad():
            out = private_copy(module)(x).double()
        first, start = (theta, out) if first is None or start is None else (first, start)
        if theta.shape != first.shape:
            raise InvalidValue(
                f"trajectory[{place}] has a kernel {list(theta.shape)}; the first has {list(first.shape)}"
            )
        sums = theta if trace else theta.diagonal(dim1=2, dim2=3).sum(-1)
        aligned = math.nan if target is None else _alignment(sums, target)
        rows.append([*_moves(theta, first), aligned, _ratio((out - start).norm(), start.norm())])
    drift, turn, scale, alignment, moved = torch.tensor(rows, dtype=torch.float64, device="cpu").unbind(1)
    return Laziness(drift, turn, scale, None if target is None else alignment, moved)


def _moves(theta: Tensor, first: Tensor) -> tuple[float, float, float]:
    """Drift, turn and scale of a kernel against the first one."""
    size, one = first.norm(), theta.norm()
    if float(size) == 0 or float(one) == 0:
        return _ratio((theta - first).norm(), size), float(size != one), _ratio(one, size)
    # 1 - cos(a, b) = |a / |a| - b / |b||^2 / 2, which does not cancel where the turn is small.
    turn = (theta / one - first / size).square().sum() / 2
    return float((theta - first).norm() / size), float(turn), float(one / size)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if float(whole) > 0 else (0.0 if float(part) == 0 else math.inf)


def _alignment(theta: Tensor, target: Tensor) -> float:
    theta = _centred(theta)
    size = float(theta.norm() * target.norm())
    return float((theta * target).sum()) / size if size > 0 else 0.0


def _centred(kernel: Tensor) -> Tensor:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def _target_kernel(y: Tensor, x: Tensor) -> Tensor:
    check_instance(Tensor, "a tensor of targets [N, ...], or None", y=y)
    if y.dim() == 0 or len(y) != len(x):
        raise InvalidValue(f"y has shape {tuple(y.shape)} for {len(x)} samples; expected a target for each")
    if not y.is_floating_point() and y.dim() == 1:
        same = (y[:, None] == y).double()  # of one-hot targets
        return _centred(same).to(x.device)
    rows = y.double().reshape(len(y), -1)
    return _centred(rows @ rows.mT).to(x.device)


def _module(net: nn.Module, entry: Any, place: int, stages: Any) -> nn.Module:
    """The network at one place of the trajectory."""
    if isinstance(entry, nn.Module):
        _refuse_other(net, entry, place)
        return entry
    named = isinstance(entry, Mapping) and all(isinstance(value, Tensor) for value in entry.values())
    try:
        if isinstance(entry, Mapping) and named:
            return _loaded(net, entry)
        if isinstance(entry, HasControls | list | tuple):
            return to_module(net, entry, stages=stages)
    except (InvalidValue, InvalidType) as error:
        raise type(error)(f"trajectory[{place}]: {error}") from error
    raise InvalidType(
        f"trajectory[{place}] is {kind_of(entry)}; expected a module, a state dict, controls or an iterate"
    )


def _refuse_other(net: nn.Module, entry: nn.Module, place: int) -> None:
    """Refuses a module of another architecture: its kernel is no later state of the first one's."""
    one, other = (getattr(module, "_orig_mod", module) for module in (net, entry))
    kinds, found = ({name: type(part).__name__ for name, part in each.named_modules()} for each in (one, other))
    shapes, given = ({name: tuple(p.shape) for name, p in each.named_parameters()} for each in (one, other))
    for what, mine, theirs in (("parameter", shapes, given), ("module", kinds, found)):
        for name in [*mine, *theirs]:
            if mine.get(name) != theirs.get(name):
                raise InvalidValue(
                    f"trajectory[{place}] is of another architecture than net: {what} {name!r} is "
                    f"{theirs.get(name, 'missing')} there and {mine.get(name, 'missing')} in net; give copies of one "
                    "network as it trains"
                )


def _loaded(net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    made = copy.deepcopy(net)
    own = made.state_dict()
    for name, value in state.items():
        if name not in own or own[name].shape != value.shape:
            raise InvalidValue(f"{name!r} {tuple(value.shape)} does not belong to net, which has {list(own)[:6]} ...")
    if not state:
        raise InvalidValue("an empty state dict")
    made.load_state_dict(dict(state), strict=False)
    return made

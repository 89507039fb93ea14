"""The coordinate check of Tensor Programs V with a verdict: does a net train alike at every width?

At each of several widths a fresh net takes a few optimiser steps on the same data. Where the change of a layer's output
grows with width, training breaks down at some width; where it shrinks, the layer stops learning (Yang, Hu et al. 2022,
arXiv:2203.03466, Appendix D.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mfoc.analysis.propagation.width.mup import Role, roles_of
from mfoc.analysis.propagation.width.report import LayerWidth, Mend, Slope, WidthCheck
from mfoc.analysis.propagation.width.trial import Groups, Loss, MakeNet, Study, Trial
from mfoc.checks import check_between, check_callable, check_integer, check_non_negative, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.seeding import mixed_seed
from mfoc.statistics import student_t_quantile


def width_check(
    make_net: MakeNet,
    widths: Sequence[int],
    x: Any,
    optimizer: Callable[..., torch.optim.Optimizer],
    *,
    loss: Loss | None = None,
    groups: Groups | None = None,
    steps: int = 4,
    seeds: int = 8,
    seed: int = 0,
    tolerance: float = 0.15,
    confidence: float = 0.95,
) -> WidthCheck:
    """Trains a net for a few steps at several widths, and says how the change of each layer's output goes with width.

    A layer is a module with parameters of its own; one that runs several times counts once. Random layers draw the
    same numbers at every step, so that a change is that of the weights. Learning rates of one's own, by layer, come
    through ``groups``. In muP, with the helpers beside this one::

        base = make_net(64)
        width_check(lambda width: mup_init_(make_net(width), base), (64, 128, 256, 512), x, torch.optim.Adam,
                    groups=lambda net: mup_groups(net, base, lr=1e-3))

    Args:
        make_net: width -> a fresh net, of the same architecture at each width.
        widths: at least two; three or more, a factor of two apart, make slopes that can be trusted.
        x: the input, or (input, target). Without a target random numbers are fitted, the same at every width.
        optimizer: parameters -> optimiser, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        loss: (output, target) -> scalar or ``[N]``; when None the mean squared error, or the cross-entropy where the
            target is of integers.
        groups: net -> what the optimiser is given: ``net.parameters()`` when None.
        steps: how many steps of the optimiser, on the whole of ``x``.
        seeds: how many initialisations at each width.
        seed: makes another draw of all of them.
        tolerance: a slope between +-tolerance is no dependence on width.
        confidence: level of the intervals.

    Raises:
        InvalidType: arguments of a wrong type; ``make_net`` or ``optimizer`` that return something else.
        InvalidValue: fewer than two widths, nets that differ in more than their widths or not at all, or that have
            nothing to train; numbers that are not finite.
    """
    if isinstance(make_net, torch.nn.Module):
        raise InvalidType(f"make_net is the {type(make_net).__name__} itself; expected a function width -> nn.Module")
    check_callable("a function width -> nn.Module", make_net=make_net)
    check_callable(
        "a function of parameters, such as functools.partial(torch.optim.Adam, lr=1e-3)", optimizer=optimizer
    )
    check_callable("a function (output, target) -> Tensor", optional=True, loss=loss)
    check_callable("a function net -> groups of parameters", optional=True, groups=groups)
    check_integer(1, steps=steps, seeds=seeds)
    check_integer(0, seed=seed)
    check_non_negative(tolerance=tolerance)
    check_between(0, 1, confidence=confidence)
    ordered = _checked_widths(widths)
    data, target = x if isinstance(x, tuple) and len(x) == 2 else (x, None)
    with torch.inference_mode(False):
        study = Study(make_net, data, target, optimizer, groups, loss, steps)
        trials = [[study.trial(width, mixed_seed(seed, 0)) for width in ordered]]
        _refuse_other_architectures(ordered, trials[0])
        nets = [one.net for one in trials[0]]
        for key in (mixed_seed(seed, index) for index in range(1, seeds)):  # other nets than the first are not kept
            trials.append([replace(study.trial(w, key), net=net) for w, net in zip(ordered, nets, strict=True)])
    fit = _Fit(torch.tensor(ordered, dtype=torch.float64, device="cpu").log(), confidence)
    layers = []
    for name, kind in trials[0][0].kinds.items():
        starts, changes = (
            torch.tensor(
                [[getattr(one, what)[name] for one in row] for row in trials], dtype=torch.float64, device="cpu"
            )
            for what in ("starts", "changes")
        )
        slope = fit(changes)
        verdict = slope.verdict(tolerance) if (changes > 0).any() else "unchanged"
        layers.append(LayerWidth(name, kind, starts, changes, fit(starts), slope, verdict))
    notes = _notes(nets[0], nets[-1])
    try:
        mends = _mends(fit, trials, roles_of(nets[-1], nets[0]))
    except InvalidValue as error:  # the check holds for nets that muP has no table for
        mends, notes = [], [*notes, f"what would mend it is not known: {error}"]
    return WidthCheck(ordered, steps, seeds, layers, mends, notes, float(tolerance), float(confidence))


# ---- over seeds and widths


@dataclass(frozen=True, eq=False)
class _Fit:
    """Least squares of log size on log width, with a constant for each seed: what seeds share is no noise."""

    logarithms: Tensor
    confidence: float

    def __call__(self, sizes: Tensor) -> Slope:
        if not bool((sizes > 0).all()):
            return Slope(math.nan, -math.inf, math.inf)
        seeds, widths = sizes.shape
        across = self.logarithms - self.logarithms.mean()
        centred = sizes.log() - sizes.log().mean(1, keepdim=True)
        spread = seeds * float(across.square().sum())
        slope = float((centred * across).sum()) / spread
        freedom = seeds * widths - seeds - 1
        if freedom < 1:
            return Slope(slope, -math.inf, math.inf)
        noise = float((centred - slope * across).square().sum()) / freedom
        half = student_t_quantile(self.confidence, freedom) * math.sqrt(noise / spread)
        return Slope(slope, slope - half, slope + half)


def _mends(fit: _Fit, trials: list[list[Trial]], roles: dict[str, Role]) -> list[Mend]:
    """Powers of width that muP asks for, less those that the nets and their optimisers have."""
    octaves = float(fit.logarithms[-1] - fit.logarithms[0])
    found = []
    for name, role in roles.items():
        sizes = torch.tensor(
            [[one.sizes.get(name, math.nan) for one in row] for row in trials], dtype=torch.float64, device="cpu"
        )
        if role.role == "fixed" or bool(sizes.isnan().any()):
            continue
        variance = 0.0
        if bool((sizes > 0).all()):  # what is zero at the start stays so
            variance = 2 * (math.log(role.scale) / octaves - fit(sizes).value)
        rule, rates = trials[0][0].rule, [one.rates.get(name, 0.0) for one in trials[0]]
        rate = None
        if rule is not None and min(rates) > 0:
            rate = _plain(
                math.log(role.rate(rule)) / octaves
                - fit(torch.tensor([rates], dtype=torch.float64, device="cpu")).value
            )
        found.append(Mend(name, role.role, _plain(variance), rate))
    return found


def _plain(power: float) -> float:
    """A power that was measured, as the nearest half where it is one but for noise."""
    half = round(2 * power) / 2
    return (half if abs(power - half) < 0.2 else round(power, 2)) + 0.0


def _notes(narrow: torch.nn.Module, wide: torch.nn.Module) -> list[str]:
    """What muP asks for that is neither a variance nor a learning rate."""
    parts = dict(narrow.named_modules())
    return [
        f"attention {name!r}: the size of a head grows, so muP divides the logits by it and not by its root; let the "
        "number of heads grow instead"
        for name, part in wide.named_modules()
        if isinstance(part, torch.nn.MultiheadAttention) and part.head_dim != getattr(parts[name], "head_dim", None)
    ]


# ---- what is refused


def _checked_widths(widths: Sequence[int]) -> list[int]:
    try:
        given = list(widths)
    except TypeError:
        raise InvalidType(f"widths is {kind_of(widths)}; expected a sequence of positive integers") from None
    for index, width in enumerate(given):
        named: dict[str, Any] = {f"widths[{index}]": width}
        check_integer(1, **named)
    if len(set(given)) < 2:
        raise InvalidValue(f"widths is {list(given)}; expected two or more, such as (64, 128, 256, 512)")
    return sorted(set(given))


def _refuse_other_architectures(widths: list[int], trials: list[Trial]) -> None:
    first = trials[0]
    for width, other in zip(widths[1:], trials[1:], strict=True):
        if list(other.kinds.items()) != list(first.kinds.items()):
            odd = sorted(other.kinds.keys() ^ first.kinds.keys()) or list(other.kinds)
            raise InvalidValue(
                f"make_net({widths[0]}) and make_net({width}) differ in their layers or the order ({', '.join(odd)}); "
                "expected one architecture whose depth does not depend on its width"
            )
    shapes = [[p.shape for p in one.net.parameters()] for one in trials]
    if any(other == shapes[0] for other in shapes[1:]):
        raise InvalidValue(
            f"make_net ignores its width: nets of widths {', '.join(map(str, widths))} have parameters of the same "
            "shapes; expected layers that grow with it"
        )

"""Adversarial training: projected gradient ascent, and YOPO."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import mfoc
from paradigms.adversarial import game
from tests.architectures import Architecture
from tests.doors.plain import Network, averaged, called, mean, named, near, shares, values
from tests.oracles import adversaries

EPSILON, STEPS = 0.1, 2


def pgd(entry: Architecture) -> None:
    """One step of adversarial training: ascent of the loss in the input, and a step of SGD there."""
    net, (x, z) = entry.make(), entry.batch()
    made = game(net, entry.loss, (x, z), epsilon=EPSILON, bounds=None, at=entry.at, part=entry.part)
    inner = mfoc.maximisers.PGD(STEPS, random_start=False)
    solution = made.solve(mfoc.Minimax(inner=inner, outer=partial(torch.optim.SGD, lr=entry.lr)), steps=1)
    robust = made.readout(solution)

    torchs = Network(entry)
    before, first, after = torchs.pieces()

    def rest(point: Any) -> Any:
        return after(first(point) if entry.part is None else called(first, _placed(x, entry.part, point)))

    length = 2.5 * EPSILON / STEPS
    entered = _target(x, entry.part) if entry.part is not None else before(x).detach()
    eta = torch.zeros_like(entered)
    for _ in range(STEPS):
        point = (entered + eta).requires_grad_()
        mean(entry.loss, rest(point), z).backward()  # type: ignore[no-untyped-call]
        assert point.grad is not None
        eta = (eta + length * point.grad.sign()).clamp(-EPSILON, EPSILON)
    torchs.step(mean(entry.loss, rest((entered if entry.part is not None else before(x)) + eta), z))
    near(dict(named(robust)), named(torchs.net), entry.rtol)
    assert not robust.training
    near(values(called(robust, x)), values(called(averaged(torchs.net, x), x)), entry.rtol)


def yopo(entry: Architecture) -> None:
    """The disturbance and the gradient of two passes with two steps each, from a given start."""
    net, (x, z) = entry.make(), entry.batch()
    made = game(net, entry.loss, (x, z), epsilon=EPSILON, bounds=None, at=entry.at, part=entry.part)
    torchs = Network(entry)
    before, first, after = torchs.pieces()
    entered = _target(x, entry.part) if entry.part is not None else before(x).detach()
    drawn = 0.05 * torch.randn(entered.shape, generator=torch.Generator().manual_seed(3)).to(entered)
    eta = drawn.clamp(-EPSILON, EPSILON)
    problem, length = made.problem, 0.02
    play = mfoc.maximisers.YOPO(2, 2, length).play(problem, problem.controls, mfoc.Particles(x, z), eta.clone())

    def run(part: Any, h: Any) -> Any:
        return part(h) if entry.part is None or part is not first else called(first, _placed(x, entry.part, h))

    parts = [before, first, after] if entry.at else [first, after]
    weights: list[list[Any]] = [list(named(part).values()) for part in parts]
    expected, slopes = adversaries.yopo(
        [lambda h, part=part: _listed(run(part, _copied(h))) for part in parts],
        weights, lambda h: shares(entry.loss, h, z), x if entry.part is None else entered, problem.ball,
        eta.requires_grad_(), 2, 2, length, s=entry.at,
    )  # fmt: skip
    near([play.disturbance], [expected], entry.rtol)
    of = {
        id(p): slope for part, found in zip(weights, slopes, strict=True) for p, slope in zip(part, found, strict=True)
    }
    gradient = mfoc.to_module(net, play.gradient, population=(x, z))
    near(dict(named(gradient)), {name: of[id(p)] for name, p in named(torchs.net).items()}, entry.rtol)


def _target(x: Any, part: Any) -> Any:
    """What is disturbed of several inputs."""
    return x[part].clone()


def _placed(x: Any, part: Any, point: Any) -> Any:
    """The inputs with another tensor in its place."""
    if isinstance(x, dict):
        return {**x, part: point}
    return tuple(point if k == part else leaf for k, leaf in enumerate(x))


def _copied(h: Any) -> Any:
    """A state that layers in place may write over."""
    return mfoc.tree.map(torch.clone, h)


def _listed(output: Any) -> Any:
    """Outputs in a container as a tuple."""
    return output if isinstance(output, torch.Tensor) else tuple(values(output))

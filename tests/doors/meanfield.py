"""Networks as control problems: training them, EMSA, and the certificate."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from tests.architectures import Architecture
from tests.doors.plain import Network, averaged, called, mean, named, near, twice_differentiable, values
from tests.problems import same_bits

FEW = 100  # so many weights have their Hessian compared


def train(entry: Architecture) -> None:
    """Three steps of SGD, and the network that is read out, in its own mode and in evaluation mode."""
    net, (x, z) = entry.make(), entry.batch()
    before = _state(net)
    problem = mfoc.from_module(net, entry.loss)
    solution = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=entry.lr)), (x, z), steps=3)
    solved = mfoc.to_module(net, solution)

    torchs, losses = Network(entry), []
    for _ in range(3):
        losses.append(mean(entry.loss, torchs(x), z))
        torchs.step(losses[-1])
    found = [losses[0].new_tensor(record["value"]) for record in solution.history]
    near(found, losses, entry.rtol)
    near(dict(named(solved)), named(torchs.net), entry.rtol)
    near(values(called(solved, x)), values(called(torchs.net, x)), entry.rtol)
    mfoc.networks.refresh_averages(solved, [x])
    near(values(called(solved.eval(), x)), values(called(averaged(torchs.net, x), x)), entry.rtol)
    _untouched(net, before, entry)


def emsa(entry: Architecture) -> None:
    """With one gradient step inside, whose penalties have no slope yet, a step of SGD; as it stands, J falls."""
    net, (x, z) = entry.make(), entry.batch()
    before = _state(net)
    problem = mfoc.from_module(net, entry.loss)
    plain = mfoc.EMSA(rho=1.0, adaptive=False, inner=mfoc.minimisers.Descent(lr=entry.lr))
    solution = mfoc.solve(problem, plain, (x, z), steps=1)

    torchs = Network(entry)
    torchs.step(mean(entry.loss, torchs(x), z))
    near(dict(named(mfoc.to_module(net, solution))), named(torchs.net), entry.rtol)

    found = mfoc.solve(problem, mfoc.EMSA(), (x, z), steps=1)
    assert all(leaf.isfinite().all() for leaf in mfoc.tree.leaves(found.controls))
    assert float(found.value) < float(solution.history[0]["value"])
    _untouched(net, before, entry)


def certify(entry: Architecture) -> None:
    """The residual is the norm of torch's gradient; the least eigenvalue is that of the dense Hessian."""
    net, (x, z) = entry.make(), entry.batch()
    problem = mfoc.from_module(net, entry.loss)
    small = sum(p.numel() for p in named(net).values()) <= FEW
    inner = mfoc.minimisers.Descent(lr=entry.lr)  # gaps are not what is asked here
    found = mfoc.certify(problem, problem.controls, (x, z), inner=inner, starts=1, groups=2, lanczos=1)

    torchs = Network(entry)
    slopes = torchs.slopes(mean(entry.loss, torchs(x), z)).values()
    norm = math.sqrt(sum(float(slope.abs().square().sum()) for slope in slopes))
    assert found.residual == _about(norm, entry)
    if not entry.second:
        assert math.isnan(found.hessian.value)
        assert found.hessian_note
    elif small:
        assert found.hessian.value == _about(_least_eigenvalue(entry, x, z), entry, 1e-6)


def _about(value: float, entry: Architecture, least: float = 0.0) -> Any:
    import pytest

    rtol = max(entry.rtol, least)
    return pytest.approx(value, rel=rtol, abs=rtol)


def _least_eigenvalue(entry: Architecture, x: Any, z: Any) -> float:
    """Of the Hessian of the loss, a row at a time."""
    torchs = Network(entry)
    with twice_differentiable():
        weights = list(named(torchs.net).values())
        value = mean(entry.loss, torchs(x), z)
        slope = _flat(torch.autograd.grad(value, weights, create_graph=True, allow_unused=True), weights)
        rows = [
            _flat(torch.autograd.grad(entry_of, weights, retain_graph=True, allow_unused=True), weights)
            if entry_of.requires_grad
            else torch.zeros_like(slope)
            for entry_of in slope
        ]
    hessian = torch.stack(rows).detach().double()
    torch.testing.assert_close(hessian, hessian.mT, rtol=entry.rtol, atol=entry.rtol)
    return float(torch.linalg.eigvalsh(hessian)[0])


def _flat(parts: tuple[Tensor | None, ...], like: list[nn.Parameter]) -> Tensor:
    """One vector of real numbers."""
    filled = [torch.zeros_like(p) if part is None else part for part, p in zip(parts, like, strict=True)]
    return torch.cat([(torch.view_as_real(g.conj()) if g.is_complex() else g).flatten() for g in filled])


def _state(net: nn.Module) -> Any:
    return copy.deepcopy(dict(net.state_dict()))


def _untouched(net: nn.Module, before: Any, entry: Architecture) -> None:
    assert same_bits(before, dict(net.state_dict()))
    assert net.training == entry.train

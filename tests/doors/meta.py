"""Meta-learning: one inner step of MAML on two tasks."""

from __future__ import annotations

from typing import Any

import torch

import mfoc
from paradigms import meta
from tests.architectures import Architecture
from tests.doors.plain import called, mean, named, near, placed, twice_differentiable

TASKS, SHOTS, INNER = 2, 3, 0.1


def maml(entry: Architecture) -> None:
    """The query loss after a step, and its gradient: Finn, Abbeel, Levine (2017), algorithm 1, a task at a time."""
    net, own = entry.make(), entry.loss
    batches = [entry.batch(SHOTS, seed=10 + k) for k in range(2 * TASKS)]
    cloud = meta.tasks(_stacked(batches[:TASKS]), _stacked(batches[TASKS:]))
    loss = own if _is_scalar(own) else lambda output, z: mean(own, output, z)
    made = meta.maml(net, loss, cloud, inner_steps=1, inner_lr=INNER)
    found = mfoc.evaluate(made.problem, made.problem.controls, cloud)

    phi = {name: p.detach().clone().requires_grad_() for name, p in named(net).items()}
    total: Any = 0.0
    with twice_differentiable():
        for (x, z), (a, b) in zip(batches[:TASKS], batches[TASKS:], strict=True):
            inner = mean(own, called(placed(entry, phi), x), z)
            slopes = torch.autograd.grad(inner, list(phi.values()), create_graph=True, materialize_grads=True)
            fast = {name: p - INNER * slope for (name, p), slope in zip(phi.items(), slopes, strict=True)}
            total = total + mean(own, called(placed(entry, fast), a), b) / TASKS
        expected = torch.autograd.grad(total, list(phi.values()), materialize_grads=True)
    near([found.value], [total], entry.rtol)
    near(list(found.gradient["phi"].values()), list(expected), entry.rtol)


def _is_scalar(loss: Any) -> bool:
    return hasattr(loss, "reduction") or loss.__module__.startswith("torch")


def _stacked(batches: list[Any]) -> tuple[Any, Any]:
    """Tasks ``[tasks, shots, ...]`` of their batches."""
    return mfoc.tree.map(lambda *leaves: torch.stack(leaves), *batches)  # type: ignore[no-any-return]

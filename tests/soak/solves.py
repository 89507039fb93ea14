"""The solves that are disturbed, and what comes of them undisturbed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import mfoc

STEPS = {"Adam": 120, "momentum": 120, "EMSA": 30}
NAMES = tuple(STEPS)
FURTHER = 8  # steps after a resumption that are compared


def made(name: str) -> tuple[mfoc.Problem, Any, mfoc.Population]:
    """A problem, a solver and a population, made anew: the same wherever and whenever it is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        x = torch.randn(64, 4)
    solver, batch_size = {
        "Adam": (mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2)), 10),
        "momentum": (mfoc.Gradient(partial(torch.optim.SGD, lr=1e-2, momentum=0.9)), 7),
        "EMSA": (mfoc.EMSA(), None),
    }[name]
    source = mfoc.population((x, x[:, :3].argmax(1)), batch_size=batch_size, seed=1)
    return mfoc.from_module(net, cross_entropy), solver, source


def digest(tree: Any) -> str:
    """Of the bits of all tensors of a tree."""
    found = hashlib.sha256()
    for leaf in mfoc.tree.leaves(tree):
        if isinstance(leaf, torch.Tensor):
            found.update(leaf.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


@dataclass
class Witness:
    """Digests of the controls by step, and which of a hook's methods were called."""

    each: Callable[[int], None] = lambda step: None

    def __post_init__(self) -> None:
        self.digests: dict[int, str] = {}
        self.called: list[str] = []

    def __call__(self, iterate: mfoc.Iterate) -> None:
        self.digests[iterate.step] = digest(iterate.controls)
        self.each(iterate.step)

    def finish(self, solution: mfoc.Solution) -> None:
        self.called.append("finish")

    def failed(self, iterate: mfoc.Iterate) -> None:
        self.called.append(f"failed at {iterate.step}")

    def close(self) -> None:
        self.called.append("close")


def told(solution: mfoc.Solution) -> dict[str, Any]:
    """What is compared of a solution: all but the clock."""
    records = [{key: value for key, value in record.items() if key != "seconds"} for record in solution.history]
    step, value = solution.last.step, solution.value
    return {"step": step, "controls": digest(solution.controls), "value": value, "history": repr(records)}


def undisturbed(_send: Any, name: str) -> tuple[dict[int, str], dict[str, Any]]:
    """Digests by step, and the solution."""
    witness = Witness()
    problem, solver, source = made(name)
    solution = mfoc.solve(problem, solver, source, steps=STEPS[name], hooks=[witness])
    return {0: digest(problem.controls)} | witness.digests, told(solution)


def checkpointed(send: Callable[[Any], None], name: str, path: str, steps: int = 0) -> dict[str, Any]:
    """Solves on from the checkpoint, if there is one, and keeps one at every step; says when it is under way."""
    steps = steps or STEPS[name]
    problem, solver, source = made(name)
    start = mfoc.hooks.load(path) if Path(path).exists() else None
    said: list[bool] = []

    def under_way(step: int) -> None:
        if not said:
            said.append(True)
            send("under way")

    hooks = [mfoc.hooks.Checkpoint(path, every=1), Witness(under_way)]
    solution = mfoc.solve(problem, solver, source, steps=steps, start=start, hooks=hooks)
    return told(solution) | {"status": solution.status.name, "called": hooks[1].called}


def resumed_like(name: str, path: Path, digests: dict[int, str], **options: Any) -> str:
    """What is wrong with a checkpoint, and with what a solve makes of it; "" where nothing is."""
    try:
        start = mfoc.hooks.load(path)
    except mfoc.InvalidValue as error:
        return f"the checkpoint cannot be loaded: {error}"
    if digest(start.controls) != digests[start.step]:
        return f"the checkpoint of step {start.step} holds other controls"
    problem, solver, source = made(name)
    steps = min(start.step + FURTHER, max(digests))
    solution = mfoc.solve(problem, solver, source, steps=steps, start=start, **options)
    if [record["step"] for record in solution.history] != list(range(steps)):
        return f"steps are missing from the history of the one resumed at {start.step}"
    same = digest(solution.controls) == digests[steps]
    return "" if same else f"resumed at step {start.step}, step {steps} has other controls"


def judged(_send: Any, name: str, path: str, digests: dict[int, str]) -> str:
    """``resumed_like`` in a process like the one that wrote the checkpoint."""
    return resumed_like(name, Path(path), digests)


def step_of(path: Path) -> int:
    """The step of a checkpoint; -1 where there is none."""
    return mfoc.hooks.load(path).step if path.exists() else -1

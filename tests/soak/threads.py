"""Threads that solve on one population, save to one path and draw random numbers all the while."""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import mfoc
from tests.soak.children import Child
from tests.soak.known import known
from tests.soak.results import Outcome, Size
from tests.soak.solves import NAMES, STEPS, digest, made, resumed_like, told

THREADS = 4


def run(size: Size) -> Outcome:
    """Each round is four solves at once, in a process of its own, on one population object."""
    outcome = Outcome("threads")
    for trial in range(size.threads):
        name = NAMES[trial % len(NAMES)]
        child = Child(at_once, name, known(name).digests, known(name).solution)
        code = child.end()
        outcome.trials += THREADS
        outcome.expect(code == 0, f"{name}: exit code {code}")
        outcome.faults += [f"{name}: {fault}" for fault in child.result or []]
    return outcome


def at_once(_send: Any, name: str, digests: dict[int, str], expected: dict[str, Any]) -> list[str]:
    """What is wrong with the solutions, and with the checkpoint that all of them wrote."""
    problem, solver, source = made(name)
    done = threading.Event()

    def draw() -> None:
        while not done.wait(1e-4):
            torch.rand(3)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"

        def one(_: int) -> str:
            torch.set_num_threads(1)
            hooks = [mfoc.hooks.Checkpoint(path, every=3)]
            try:
                found = told(mfoc.solve(problem, solver, source, steps=STEPS[name], hooks=hooks))
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return "" if found == expected else "in a thread, the solution is another"

        drawing = threading.Thread(target=draw)
        drawing.start()
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                faults = [fault for fault in pool.map(one, range(THREADS)) if fault]
        finally:
            done.set()
            drawing.join()
        fault = resumed_like(name, path, digests)
        left = sorted(file.name for file in Path(folder).iterdir() if file.name != "run")
    if digest(problem.controls) != digests[0]:
        faults.append("the problem's own controls were written to")
    return faults + [fault] * bool(fault) + [f"files are left behind: {left}"] * bool(left)

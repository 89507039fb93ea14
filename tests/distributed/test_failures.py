"""Over ranks: one of them fails at any moment, and none waits for it, goes on, or loses what was reached."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import mfoc
from tests.ranks import in_turn, on_ranks

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.1))
STEPS, AT, EVERY = 12, 7, 5
FAILING = 1  # the rank


def problem(act: Callable[[int], object] = lambda _: None) -> mfoc.Problem:
    """Moves the cloud; the dynamics of the failing rank first do something, given how often they were called."""
    calls = [0]

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        if t == 0 and dist.get_rank() == FAILING:
            calls[0] += 1
            act(calls[0])
        return x + u

    return mfoc.Problem(dynamics, lambda x, z: (x - 3).square().sum(1), [torch.zeros(2)] * 3)


def cloud() -> torch.Tensor:
    return torch.arange(12.0).reshape(6, 2)


def mine(_: object = None) -> None:
    raise ValueError("mine")


class Hook:
    """Does something in one of its methods."""

    def __init__(self, where: str, act: Callable[[object], object] = mine) -> None:
        self._where, self._act = where, act
        self.step = 0

    def _at(self, where: str, given: object = None) -> None:
        if where == self._where:
            self._act(given)

    def start(self, steps: int) -> None:
        self._at("start", steps)

    def __call__(self, iterate: mfoc.Iterate) -> None:
        self.step = iterate.step
        if iterate.step == AT:
            self._at("call", iterate)

    def finish(self, solution: mfoc.Solution) -> None:
        self._at("finish", solution)

    def close(self) -> None:
        self._at("close")


def ended(run: Callable[[], mfoc.Solution]) -> dict[str, Any]:
    """How a solve ends here."""
    began = time.monotonic()
    found: dict[str, Any] = {"kind": "", "words": "", "rank": None, "at": None, "status": "", "step": -1}
    try:
        solution = run()
        found |= {"status": solution.status.value, "step": solution.last.step}
    except BaseException as error:
        found |= {"kind": type(error).__name__, "words": str(error)}
        found |= {"rank": getattr(error, "rank", None), "at": getattr(error, "step", None)}
        found["step"] = getattr(getattr(error, "last_iterate", None), "step", -1)
    return found | {"seconds": time.monotonic() - began}


def solved(act: Callable[[int], object] = lambda _: None, *, steps: int = STEPS, **given: Any) -> dict[str, Any]:
    """How a solve ends; and then another on the same ranks."""
    first = ended(lambda: mfoc.solve(problem(act), given.pop("solver", ADAM), cloud(), steps=steps, **given))
    time.sleep(0.1)  # each has left the first before one has begun the second
    return {"first": first, "second": ended(lambda: mfoc.solve(problem(), ADAM, cloud(), steps=2))}


def saved(name: str) -> mfoc.hooks.Checkpoint:
    return mfoc.hooks.Checkpoint(Path(os.environ["FOLDER"]) / name, every=EVERY)


def failing_hook(where: str) -> dict[str, Any]:
    return solved(hooks=[saved(where), *[Hook(where)] * (dist.get_rank() == FAILING)])


def failing_step() -> dict[str, Any]:
    """The dynamics fail, in the middle of a step."""
    counter = Hook("call", lambda _: None)
    return solved(lambda _: mine() if counter.step == AT else None, hooks=[counter, saved("step")])


class Failing(torch.optim.Adam):
    """Fails in the middle of its step: nobody can say where its controls are."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if dist.get_rank() == FAILING and next(iter(self.state.values()))["step"] == AT:
            mine()
        return loss


def failing_optimiser() -> dict[str, Any]:
    return solved(solver=mfoc.Gradient(partial(Failing, lr=0.1)), hooks=[saved("optimiser")])


def signalled(*numbers: int, after: float = 0.0) -> dict[str, Any]:
    """Signals in the middle of a step, or while the failing rank waits in a collective for the other."""

    def act(calls: int) -> None:
        if calls == 60:  # after those of the validation
            for number in numbers:
                if after:
                    threading.Timer(after, os.kill, (os.getpid(), number)).start()
                else:
                    os.kill(os.getpid(), number)

    def late(_: object) -> None:
        time.sleep(2 * after)

    hooks = [Hook("call", late)] if after and dist.get_rank() != FAILING else []
    return solved(act, steps=400, hooks=hooks)


def signalled_at_the_end() -> dict[str, Any]:
    hooks = [Hook("finish", lambda _: os.kill(os.getpid(), signal.SIGINT))] * (dist.get_rank() == FAILING)
    return solved(hooks=hooks)


def slow() -> dict[str, Any]:
    return solved(lambda calls: time.sleep(3.0) if calls == 50 else None, steps=60)


RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    **{where: partial(failing_hook, where) for where in ("start", "call", "finish", "close")},
    "step": failing_step,
    "optimiser": failing_optimiser,
    "interrupted": partial(signalled, signal.SIGINT),
    "terminated": partial(signalled, signal.SIGTERM),
    "interrupted in a collective": partial(signalled, signal.SIGINT, after=0.3),
    "interrupted twice": partial(signalled, signal.SIGINT, signal.SIGINT),
    "interrupted at the end": signalled_at_the_end,
    "slow": slow,
}


def everything() -> dict[str, Any]:
    return dict(zip(RUNS, in_turn(RUNS.values()), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def ranks(folder: Path, tmp_path_factory: Any) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLDER", str(folder))
        return [found for (found,) in on_ranks(tmp_path_factory.mktemp("ranks"), everything)]


REACHED = {"start": 0, "call": AT, "step": AT, "optimiser": AT - 1, "finish": STEPS}


@pytest.mark.slow
@pytest.mark.parametrize("name", REACHED)
def test_a_rank_that_fails_ends_the_solve_of_all_and_nothing_is_lost(name, ranks, folder):
    other, failing = (found[name] for found in ranks)
    assert failing["first"]["words"] == "mine"
    assert failing["first"]["step"] == REACHED[name]
    assert other["first"]["kind"] == "RankError"
    assert (other["first"]["rank"], other["first"]["at"]) == (FAILING, REACHED[name])
    assert f"rank 1 failed at step {REACHED[name]}: ValueError: mine" in other["first"]["words"]
    assert other["first"]["seconds"] < 5
    if name != "start":
        assert f"the last checkpoint is {folder / name}, of step" in other["first"]["words"]
        assert mfoc.hooks.load(folder / name).step == max(other["first"]["step"], REACHED[name])
    for found in (other, failing):  # what was said of one solve is not said of the next
        assert found["second"]["kind"] == "RankError"
        assert found["second"]["words"].count("checkpoint") == 0
        assert found["second"]["seconds"] < 5


@pytest.mark.slow
def test_a_close_that_fails_on_one_rank_is_told_to_the_others(ranks, folder):
    other, failing = (found["close"] for found in ranks)
    assert failing["first"]["words"] == "mine"
    assert other["first"]["status"] == "max_steps"
    for found in (other, failing):
        assert "rank 1 failed: ValueError: mine" in found["second"]["words"]
    assert mfoc.hooks.load(folder / "close").step == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["interrupted", "interrupted in a collective"])
def test_a_signal_to_one_rank_ends_all_at_the_same_iterate(name, ranks):
    first, second = (found[name] for found in ranks)
    assert first["first"]["status"] == second["first"]["status"] == "interrupted"
    assert 0 < first["first"]["step"] == second["first"]["step"] < 400
    assert first["second"]["status"] == second["second"]["status"] == "max_steps"


@pytest.mark.slow
def test_sigterm_to_one_rank_ends_the_processes_of_all(ranks):
    first, second = (found["terminated"] for found in ranks)
    for found in (first, second):
        assert (found["first"]["kind"], found["first"]["words"]) == ("SystemExit", "143")
        assert 0 < found["first"]["step"] < 400
        assert found["second"]["status"] == "max_steps"
    assert first["first"]["step"] == second["first"]["step"]


@pytest.mark.slow
def test_who_is_asked_twice_leaves_at_once_and_the_others_are_told(ranks):
    other, twice = (found["interrupted twice"] for found in ranks)
    assert twice["first"]["kind"] == "KeyboardInterrupt"
    assert twice["first"]["step"] > 0
    assert other["first"]["kind"] == "RankError"
    assert f"rank 1 failed at step {twice['first']['step']}: KeyboardInterrupt;" in other["first"]["words"]


@pytest.mark.slow
def test_a_signal_after_the_last_step_is_raised_on_all(ranks):
    for found in ranks:
        assert found["interrupted at the end"]["first"]["kind"] == "KeyboardInterrupt"
        assert found["interrupted at the end"]["first"]["step"] == STEPS
        assert found["interrupted at the end"]["second"]["status"] == "max_steps"


@pytest.mark.slow
def test_a_slow_rank_is_waited_for(ranks):
    for found in ranks:
        assert found["slow"]["first"]["status"] == "max_steps"
        assert found["slow"]["first"]["seconds"] > 3

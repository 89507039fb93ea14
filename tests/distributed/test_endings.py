"""Over ranks: all start alike, and all end together, whatever one of them does."""

from __future__ import annotations

import os
import signal
import weakref
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

import mfoc
from tests.ranks import on_ranks

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


def problem(scale: float = 1.0, start: float = 0.0) -> mfoc.Problem:
    return mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: scale * (x - 3).square().sum(1), [torch.full((2,), start)] * 3
    )


def cloud() -> torch.Tensor:
    return torch.arange(12.0).reshape(6, 2)


def own() -> int:
    return dist.get_rank()


def said(run: Any) -> str:
    """What an error says; nothing without one."""
    try:
        run()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


DIFFERENT: dict[str, Any] = {
    "controls": lambda: mfoc.solve(problem(start=float(own())), SGD, cloud(), steps=2),
    "problem": lambda: mfoc.solve(problem(scale=1.0 + own()), SGD, cloud(), steps=2),
    "learning rate": lambda: mfoc.solve(
        problem(), mfoc.Gradient(partial(torch.optim.SGD, lr=0.1 + own())), cloud(), steps=2
    ),
    "optimizer": lambda: mfoc.solve(
        problem(), mfoc.Gradient([torch.optim.Adam, torch.optim.AdamW][own()]), cloud(), steps=2
    ),
    "seed": lambda: mfoc.solve(problem(), SGD, mfoc.population(cloud(), batch_size=4, seed=own()), steps=2),
    "batch_size": lambda: mfoc.solve(problem(), SGD, mfoc.population(cloud(), batch_size=3 - own()), steps=2),
    "size": lambda: mfoc.solve(problem(), SGD, cloud()[own() :], steps=2),
    "steps": lambda: mfoc.solve(problem(), SGD, cloud(), steps=2 + own()),
    "tol": lambda: mfoc.solve(problem(), SGD, cloud(), steps=2, tol=0.1 + own()),
}


def refusals() -> dict[str, str]:
    found = {name: said(run) for name, run in DIFFERENT.items()}
    found["after them"] = said(lambda: mfoc.solve(problem(), SGD, cloud(), steps=2))
    return found


def counting(found: list[int]) -> Any:
    return lambda iterate: found.append(iterate.step)


def hooks_on_one_rank() -> tuple[int, str, list[int]]:
    steps: list[int] = []
    hooks = [counting(steps), lambda at: at.step == 5] if own() == 0 else []
    solution = mfoc.solve(problem(), SGD, cloud(), steps=9, hooks=hooks)
    return solution.last.step, solution.status.value, steps


def asking(number: int) -> Any:
    return lambda iterate: os.kill(os.getpid(), number) if iterate.step == 3 else None


def interrupted_on_one_rank() -> tuple[int, str]:
    solution = mfoc.solve(problem(), SGD, cloud(), steps=9, hooks=[asking(signal.SIGINT)] * (own() == 1))
    return solution.last.step, solution.status.value


def terminated_on_one_rank() -> tuple[int, int]:
    try:
        mfoc.solve(problem(), SGD, cloud(), steps=9, hooks=[asking(signal.SIGTERM)] * (own() == 1))
    except SystemExit as error:
        return int(error.code), error.solution.last.step  # type: ignore[attr-defined]
    return 0, 0


def failing(error: BaseException) -> Any:
    def hook(iterate: mfoc.Iterate) -> None:
        if iterate.step == 4:
            raise error

    return hook


def nonfinite_on_one_rank() -> tuple[int, str]:
    error = mfoc.NonFiniteError("mine", stage=None, step=4, last=None)
    solution = mfoc.solve(problem(), SGD, cloud(), steps=9, hooks=[failing(error)] * (own() == 1))
    return solution.last.step, solution.status.value


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(
        tmp_path_factory.mktemp("ranks"),
        refusals,
        hooks_on_one_rank,
        interrupted_on_one_rank,
        terminated_on_one_rank,
        nonfinite_on_one_rank,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_start_differently_are_refused_and_the_difference_is_named(name, ranks):
    words = {
        "learning rate": "solver.optimizer.groups.0.lr: 0.1 on rank 0; 1.1 on rank 1",
        "optimizer": "solver.optimizer: 'Adam' on rank 0; 'AdamW' on rank 1",
        "seed": "population.seed: 0 on rank 0; 1 on rank 1",
        "problem": "problem.terminal_cost",
    }
    for found, *_ in ranks:
        assert found[name].startswith("InvalidValue: the ranks do not start alike"), found[name]
        assert words.get(name, name) in found[name]
        assert found["after them"] == ""  # all of them were refused alike, and are still in step


@pytest.mark.slow
def test_all_ranks_end_together(ranks):
    for rank, (_, hooked, interrupted, terminated, nonfinite) in enumerate(ranks):
        assert hooked == (5, "stopped", [1, 2, 3, 4, 5] if rank == 0 else [])
        assert interrupted == (3, "interrupted")
        assert terminated == (143, 3)
        assert nonfinite == (4, "nonfinite")


def failing_on_one_rank() -> str:
    path = os.environ["CHECKPOINT"]
    hooks = [mfoc.hooks.Checkpoint(path, every=1), *[failing(ValueError("mine"))] * (own() == 1)]
    return said(lambda: mfoc.solve(problem(), SGD, cloud(), steps=9, hooks=hooks))


@pytest.mark.slow
def test_an_error_on_one_rank_ends_all_with_what_it_was_and_where_the_checkpoint_is(tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINT", str(tmp_path / "run"))
    (tmp_path / "out").mkdir()
    (first,), (second,) = on_ranks(tmp_path / "out", failing_on_one_rank, barrier=False)
    assert second == "ValueError: mine"
    assert first.startswith("RankError: rank 1 failed at step 4: ValueError: mine")
    assert f"the last checkpoint is {tmp_path / 'run'}, of step 4" in first
    assert mfoc.hooks.load(tmp_path / "run").step == 4


def destroyed() -> list[bool]:
    """Whether the group is there after a solve, and after it was destroyed."""
    mfoc.solve(problem(), SGD, cloud(), steps=2)
    group = weakref.ref(dist.group.WORLD)
    there = [group() is not None]
    dist.destroy_process_group()
    return [*there, group() is not None]


def test_a_group_that_is_destroyed_is_gone(tmp_path):
    # Its threads end with it. Where they live on into the end of the process, one of them may abort Python.
    assert on_ranks(tmp_path, destroyed, barrier=False) == [[[True, False]]] * 2

"""A run as a CSV file: rows are whole, those of a run that goes on are there once, and nobody else's are lost."""

import csv
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import pytest
import torch

import mfoc
from mfoc import hooks
from tests.problems import mlp

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))
PROBLEM, CLOUD = mlp()
SOURCE = mfoc.population(CLOUD, batch_size=3, seed=5)
POSIX = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")


def solve(steps, *run, start=None, problem=PROBLEM, solver=ADAM):
    return mfoc.solve(problem, solver, SOURCE, steps=steps, hooks=list(run), start=start)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_clock(path):
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows(path)]


def at(step, **said):
    return mfoc.Iterate(step, [torch.zeros(1)], {}, mfoc.Info(torch.tensor(0.5), [torch.tensor([3.0])], said))


def test_a_row_is_what_the_step_saw_and_what_the_function_says(tmp_path):
    path = tmp_path / "run.csv"
    solution = solve(6, hooks.CSV(path, lambda it: {"twice": 2 * it.step, "half": torch.tensor(it.step / 2)}, every=2))
    found = rows(path)
    assert list(found[0]) == ["step", "seconds", "value", "residual", "twice", "half"]
    assert [int(row["step"]) for row in found] == [2, 4, 6]
    for row in found:  # to the last bit
        record = solution.history[int(row["step"]) - 1]
        assert (float(row["value"]), float(row["residual"])) == (record["value"], record["residual"])
        assert float(row["seconds"]) >= record["seconds"] - 1e-6
        assert (int(row["twice"]), float(row["half"])) == (2 * int(row["step"]), int(row["step"]) / 2)


@pytest.mark.parametrize("ended", [9, 7, 5])  # the run was killed after its checkpoint at step 5, or there
def test_a_resumed_run_is_one_file_as_if_it_had_never_stopped(tmp_path, ended):
    whole, path = tmp_path / "whole.csv", tmp_path / "run.csv"
    solve(12, hooks.CSV(whole))
    solve(5, hooks.Checkpoint(tmp_path / "run"))
    solve(ended, hooks.CSV(path))
    solve(12, hooks.CSV(path), start=hooks.load(tmp_path / "run"))
    assert without_clock(path) == without_clock(whole)
    seconds = [float(row["seconds"]) for row in rows(path)][5:]
    assert seconds == sorted(seconds)


def test_the_clock_of_a_resumed_run_goes_on(tmp_path):
    path = tmp_path / "run.csv"
    last = solve(4, lambda it: time.sleep(0.05) if it.step == 2 else None, hooks.CSV(path)).last
    solve(6, hooks.CSV(path), start=last)
    seconds = [float(row["seconds"]) for row in rows(path)]
    assert seconds == sorted(seconds)
    assert 0.05 < seconds[4] < 5


@pytest.mark.parametrize("torn", [b"10,0.5", b"10,0.5,0.25,0.1,7", b"1"])
def test_a_row_that_a_kill_has_cut_is_dropped_when_the_run_goes_on(tmp_path, torn):
    path = tmp_path / "run.csv"
    last = solve(9, hooks.CSV(path)).last
    with open(path, "ab") as file:
        file.write(torn)
    solve(11, hooks.CSV(path), start=last)
    assert [int(row["step"]) for row in rows(path)] == list(range(1, 12))
    assert all(None not in row and None not in row.values() for row in rows(path))


SCRIPT = """
    import sys, torch, mfoc
    at = lambda k: mfoc.Iterate(k, [], {}, mfoc.Info(torch.tensor(k / 7), [torch.tensor([k / 3])], {}))
    run = mfoc.hooks.CSV(sys.argv[1], lambda it: {f"column {k}": it.step / (k + 1) for k in range(40)})
    run.start(10**9)
    for k in range(1, 10**9):
        run(at(k))
"""


@POSIX
@pytest.mark.slow
def test_kill_at_any_moment(tmp_path):
    script, path = tmp_path / "run.py", tmp_path / "run.csv"
    script.write_text(textwrap.dedent(SCRIPT))
    run = subprocess.Popen([sys.executable, script, path])
    while not (path.exists() and path.stat().st_size > 1e5):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    lines = path.read_bytes().split(b"\n")[:-1]
    assert [int(line.split(b",")[0]) for line in lines[1:]] == list(range(1, len(lines)))
    assert {line.count(b",") for line in lines} == {43}


def test_the_file_of_another_run_is_refused_and_stays(tmp_path):
    path = tmp_path / "run.csv"
    last = solve(5, hooks.CSV(path)).last
    before = path.read_bytes()
    with pytest.raises(
        mfoc.InvalidValue, match=r"steps 1 to 5 of another run.*before its first checkpoint.*overwrite=T"
    ):
        solve(3, hooks.CSV(path))
    other = solve(5, solver=mfoc.Gradient(partial(torch.optim.Adam, lr=1e-3))).last
    with pytest.raises(mfoc.InvalidValue, match="another run than start: J and residual at step 2"):
        mfoc.solve(PROBLEM, ADAM, SOURCE, steps=7, start=other, allow_changes=True, hooks=[hooks.CSV(path)])
    assert path.read_bytes() == before
    solve(8, hooks.CSV(path, overwrite=True), start=last)  # its own goes on all the same
    assert len(rows(path)) == 8
    solve(3, hooks.CSV(path, overwrite=True))
    assert [row["step"] for row in rows(path)] == ["1", "2", "3"]


@pytest.mark.parametrize("text", ["step,loss\n1,2\n", "notes of mine\n", "x", "step,seconds,value,residual\n1,2,3\n",
                                  "step,seconds,value,residual\n2,0,0,0\n1,0,0,0\n"])  # fmt: skip
def test_what_is_something_else_is_refused_before_the_first_step(tmp_path, text):
    path, called = tmp_path / "run.csv", []
    path.write_text(text)
    with pytest.raises(mfoc.InvalidValue, match=r"something else|line \d is damaged"):
        solve(2, called.append, hooks.CSV(path))
    assert (path.read_text(), called) == (text, [])
    solve(2, hooks.CSV(path, overwrite=True))
    assert len(rows(path)) == 2


@pytest.mark.parametrize("ended", [1, 4, 7])  # before the first checkpoint, and after one
def test_a_script_that_overwrites_is_started_again_after_any_crash(tmp_path, ended):
    whole, path, saved = tmp_path / "whole.csv", tmp_path / "run.csv", tmp_path / "run"
    solve(9, hooks.CSV(whole))

    def script(steps):
        start = hooks.load(saved) if saved.exists() else None
        solve(steps, hooks.CSV(path, overwrite=True), start=start)

    if ended > 5:
        solve(5, hooks.CSV(path), hooks.Checkpoint(saved))
    script(ended)
    script(9)
    assert without_clock(path) == without_clock(whole)


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "run.csv"
    last = solve(3, hooks.CSV(path, lambda it: {"a": 1, "b": 2})).last
    with pytest.raises(mfoc.InvalidValue, match=r"\['a'\].*\['a', 'b'\]"):
        solve(5, hooks.CSV(path, lambda it: {"a": 1}), start=last)
    solve(5, hooks.CSV(path, lambda it: {"b": 2, "a": 1}), start=last)  # another order is none
    assert [(row["a"], row["b"]) for row in rows(path)] == [("1", "2")] * 5
    with pytest.raises(mfoc.InvalidValue, match="the same in every row"):
        solve(9, hooks.CSV(path, lambda it: {"a": 1, "b": 2} if it.step < 7 else {}), start=last)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (0.5, mfoc.InvalidType), (None, mfoc.InvalidType), ({"a": "fast"}, mfoc.InvalidType),
        ({"a": torch.ones(2)}, mfoc.InvalidType), ({1: 2.0}, mfoc.InvalidType), ({"value": 1.0}, mfoc.InvalidValue),
        ({"a\nb": 1.0}, mfoc.InvalidValue), ({"a": 10**400}, mfoc.InvalidType), ({"a": -(10**5000)}, mfoc.InvalidType),
    ],
)  # fmt: skip
def test_what_is_no_dict_of_numbers_is_refused(tmp_path, said, error):
    with pytest.raises(error, match=r"function\(iterate\) returned"):
        hooks.CSV(tmp_path / "run.csv", lambda it: said)(at(1))


@POSIX
def test_two_runs_do_not_write_to_one_file(tmp_path):
    first, second = hooks.CSV(tmp_path / "run.csv"), hooks.CSV(tmp_path / "run.csv", overwrite=True)
    first(at(1))
    with pytest.raises(mfoc.InvalidValue, match="another run is writing"):
        second.start(3)
    first.close()
    second(at(1))
    second.close()


@POSIX
@pytest.mark.parametrize("room", [120, 137, 140, 200])  # in the middle of a row, and at its end
def test_where_no_space_is_left_the_rows_before_are_whole(tmp_path, room):
    path, limits = tmp_path / "run.csv", resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(mfoc.StorageError, match="no space left") as caught:
            solve(30, hooks.CSV(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.path == path
    steps = len(rows(path))
    assert path.read_bytes().endswith(b"\n")
    assert steps + 1 == caught.value.last_iterate.step
    assert all(len(row) == 4 and None not in row.values() for row in rows(path))


@pytest.mark.parametrize("kind", ["folder", "fifo", "no folder"])
def test_a_path_where_no_file_can_be_is_refused(tmp_path, kind):
    path = tmp_path / "run.csv"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = tmp_path / "no" / "run.csv"
    with pytest.raises(mfoc.InvalidValue, match="path is"):
        hooks.CSV(path)


def test_over_ranks_all_are_asked_and_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("mfoc.hooks.csv.is_main", lambda: False)
    asked = []
    solve(3, hooks.CSV(tmp_path / "run.csv", lambda it: asked.append(it.step) or {"a": 1}))
    assert (asked, list(tmp_path.iterdir())) == ([1, 2, 3], [])

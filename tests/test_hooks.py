"""Hooks: checkpoints survive anything, records and progress report what happened."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import numpy as np
import pytest
import torch

import mfoc
from mfoc import hooks
from tests.problems import mlp, same_bits

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))


def without_clock(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def test_resuming_is_bitwise(tmp_path):
    problem, cloud = mlp()
    source = mfoc.population(cloud, batch_size=3, seed=5)
    whole = mfoc.solve(problem, ADAM, source, steps=20)
    mfoc.solve(problem, ADAM, source, steps=9, hooks=[hooks.Checkpoint(tmp_path / "run", every=4)])
    start = hooks.load(tmp_path / "run")
    assert start.step == 9  # the last iterate, not the last multiple
    resumed = mfoc.solve(problem, ADAM, source, steps=20, start=start)
    assert same_bits(whole.controls, resumed.controls)
    assert without_clock(whole.history) == without_clock(resumed.history)


SCRIPT = """
    import sys, torch
    import torch.nn.functional as F
    from functools import partial
    import mfoc
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    problem = mfoc.from_module(net, F.cross_entropy)
    x = torch.randn(64, 4)
    source = mfoc.population((x, x[:, :3].argmax(1)), batch_size=10, seed=1)
    solver = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))
    path, steps, resume = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
    start = mfoc.hooks.load(path) if resume else None
    done = mfoc.solve(problem, solver, source, steps=steps, start=start, hooks=[mfoc.hooks.Checkpoint(path, every=1)])
    torch.save(mfoc.tree.ravel(done.controls), path + ".controls")
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.05, 0.31])
def test_kill_at_any_moment(tmp_path, delay):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    path = str(tmp_path / "ckpt")
    run = subprocess.Popen([sys.executable, script, path, "1000000"])
    while not os.path.exists(path):
        assert run.poll() is None
        time.sleep(0.01)
    time.sleep(delay)
    run.send_signal(signal.SIGKILL)
    run.wait()
    killed = hooks.load(path).step
    subprocess.run([sys.executable, script, path, str(killed + 25), "resume"], check=True)
    other = str(tmp_path / "other")
    subprocess.run([sys.executable, script, other, str(killed + 25)], check=True)
    assert torch.equal(torch.load(path + ".controls"), torch.load(other + ".controls"))


def test_a_checkpoint_holds_tensors_and_plain_values(tmp_path):
    problem, cloud = mlp()
    for name, solver in {"adam": ADAM, "emsa": mfoc.EMSA(1.0, adaptive=True)}.items():
        mfoc.solve(problem, solver, cloud, steps=2, hooks=[hooks.Checkpoint(tmp_path / name)])
        record = torch.load(tmp_path / name, weights_only=True)
        assert record["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adam", "emsa"]  # no temporary file is left


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    problem, cloud = mlp()
    path = tmp_path / "run"
    mfoc.solve(problem, ADAM, cloud, steps=3, hooks=[hooks.Checkpoint(path)])
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        mfoc.solve(problem, ADAM, cloud, steps=5, hooks=[hooks.Checkpoint(path, every=1)])
    assert hooks.load(path).step == 3
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_nonfinite_solve_saves_its_last_good_iterate(tmp_path):
    problem, cloud = mlp()
    wild = mfoc.Gradient(partial(torch.optim.SGD, lr=1e308))
    solution = mfoc.solve(problem, wild, cloud, steps=9, hooks=[hooks.Checkpoint(tmp_path / "run", every=100)])
    assert solution.status is mfoc.Status.NONFINITE
    kept = hooks.load(tmp_path / "run")
    assert all(leaf.isfinite().all() for leaf in mfoc.tree.leaves(kept.controls))


def test_a_checkpoint_of_the_first_format_is_still_read(tmp_path):
    problem, cloud = mlp()
    part = mfoc.solve(problem, ADAM, cloud, steps=3)
    old = {"format": "mfoc.iterate.v1", "step": 3, "controls": part.last.controls, "state": part.last.state}
    torch.save(old, tmp_path / "old")
    start = hooks.load(tmp_path / "old")
    resumed = mfoc.solve(problem, ADAM, cloud, steps=5, start=start)
    assert same_bits(resumed.controls, mfoc.solve(problem, ADAM, cloud, steps=5).controls)
    assert [record["step"] for record in resumed.history] == [3, 4]


@pytest.mark.parametrize("solver", [ADAM, mfoc.EMSA(1.0, adaptive=True)], ids=["adam", "emsa"])
def test_a_history_comes_back_as_it_was(solver, tmp_path):
    problem, cloud = mlp()
    part = mfoc.solve(problem, solver, cloud, steps=3, hooks=[hooks.Checkpoint(tmp_path / "run")])
    kept = hooks.load(tmp_path / "run").history
    assert kept == part.history
    assert [list(map(type, a.values())) for a in kept] == [list(map(type, a.values())) for a in part.history]


class Reporting:
    """Reports of itself what comes to hand."""

    def init(self, problem, controls):
        return {}

    def step(self, problem, controls, state, particles):
        value, gradient = mfoc.evaluate(problem, controls, particles)
        odd = {"numpy": np.float64(0.5), "tensor": torch.tensor(0.25), "word": "fast", "none": None}
        return controls, {}, mfoc.Info(value, gradient, odd)


def test_whatever_a_solver_reports_the_checkpoint_can_be_read(tmp_path):
    problem, cloud = mlp()
    mfoc.solve(problem, Reporting(), cloud, steps=2, hooks=[hooks.Checkpoint(tmp_path / "run")])
    record = hooks.load(tmp_path / "run").history[1]
    assert (record["numpy"], record["tensor"], record["word"], record["none"]) == (0.5, 0.25, "fast", "None")


def test_a_history_takes_little_room(tmp_path):
    problem, cloud = mlp()
    last = mfoc.solve(problem, ADAM, cloud, steps=1).last
    sizes = []
    for n in (0, 2000):
        records = [{"step": k, "value": k / 7, "residual": k / 3, "seconds": k / 11} for k in range(n)]
        at = mfoc.Iterate(n, last.controls, last.state, history=records)
        hooks.Checkpoint(tmp_path / "run", every=1)(at)
        sizes.append((tmp_path / "run").stat().st_size)
    assert sizes[1] - sizes[0] < 34 * 2000


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_load_says_what_is_wrong(tmp_path, content):
    with pytest.raises(mfoc.InvalidValue, match="no such file"):
        hooks.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(mfoc.InvalidValue, match="not a checkpoint"):
        hooks.load(tmp_path / "bad")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(mfoc.InvalidValue, match="something else"):
        hooks.load(tmp_path / "other")


def test_record():
    problem, cloud = mlp()
    record = hooks.Record(lambda it: it.step**2, every=3)
    mfoc.solve(problem, ADAM, cloud, steps=10, hooks=[record])
    assert record.steps == [3, 6, 9]
    assert record.values == [9, 36, 81]
    assert record.seconds == sorted(record.seconds)


def test_progress_shows_the_objective():
    rich = pytest.importorskip("rich.console")
    problem, cloud = mlp()
    display = hooks.progress_display()
    display.live.console = console = rich.Console(file=io.StringIO(), record=True, force_terminal=True)
    with display:
        mfoc.solve(problem, ADAM, cloud, steps=4, hooks=[hooks.Progress("digits", display=display)])
    shown = console.export_text()
    assert "digits" in shown
    assert "4/4" in shown
    assert "J 0." in shown


def test_bad_arguments(tmp_path):
    with pytest.raises(mfoc.InvalidValue, match="folder does not exist"):
        hooks.Checkpoint(tmp_path / "no" / "run")
    with pytest.raises(mfoc.InvalidValue, match="every"):
        hooks.Checkpoint(tmp_path / "run", every=0)
    with pytest.raises(mfoc.InvalidType, match="function"):
        hooks.Record(3)

"""A run in TensorBoard: by its own reader where it is installed, and by a stand-in that writes down what it is told."""

import importlib.util
import sys
import types
from functools import partial

import pytest
import torch

import mfoc
from mfoc import hooks
from tests.problems import mlp

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))
PROBLEM, CLOUD = mlp()
installed = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")


class Writer:
    """In the place of torch's SummaryWriter."""

    made: list["Writer"]

    def __init__(self, folder, purge_step=None, flush_secs=120):
        self.purge_step, self.closed, self.entries = purge_step, 0, []
        with open(f"{folder}/events.out.tfevents.{len(self.made)}", "w"):
            self.made.append(self)

    def add_scalar(self, tag, value, step):
        self.entries.append((step, tag, value))

    def close(self):
        self.closed += 1


@pytest.fixture
def made(monkeypatch):
    """The writers that were made."""
    Writer.made = []
    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    return Writer.made


def solve(steps, run, start=None):
    return mfoc.solve(PROBLEM, ADAM, CLOUD, steps=steps, hooks=[run], start=start)


def test_what_is_written(tmp_path, made):
    solution = solve(4, hooks.TensorBoard(tmp_path / "a" / "run", lambda it: {"half": it.step / 2}, every=2))
    (writer,) = made
    told = {(step, tag): value for step, tag, value in writer.entries}
    assert (writer.closed, writer.purge_step, len(told)) == (1, None, len(writer.entries))
    for step in (2, 4):
        record = solution.history[step - 1]
        assert told.pop((step, "J")) == record["value"]
        assert told.pop((step, "residual")) == record["residual"]
        assert told.pop((step, "seconds")) >= record["seconds"]
        assert told.pop((step, "half")) == step / 2
    assert told == {}


def test_a_resumed_run_goes_on_and_another_is_refused(tmp_path, made):
    last = solve(3, hooks.TensorBoard(tmp_path)).last
    solve(5, hooks.TensorBoard(tmp_path), start=last)
    assert made[1].purge_step == 4
    assert {step for step, _, _ in made[1].entries} == {4, 5}
    with pytest.raises(mfoc.InvalidValue, match=r"holds another run.*overwrite=True"):
        solve(2, hooks.TensorBoard(tmp_path))
    solve(2, hooks.TensorBoard(tmp_path, overwrite=True))
    assert (len(made), made[2].purge_step) == (3, 0)


def test_what_the_system_refuses_is_said(tmp_path, made, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "add_scalar", full)
    with pytest.raises(mfoc.StorageError, match="no space left"):
        solve(3, hooks.TensorBoard(tmp_path))
    assert made[0].closed == 1


def test_bad_arguments(tmp_path, made, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(mfoc.InvalidValue, match=r"folder is .*expected a folder"):
        hooks.TensorBoard(tmp_path / "file")
    with pytest.raises(mfoc.InvalidType, match="folder is"):
        hooks.TensorBoard(3)
    with pytest.raises(mfoc.InvalidType, match="dict of numbers"):
        solve(1, hooks.TensorBoard(tmp_path / "run", lambda it: it.step))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(mfoc.MissingExtra, match=r"pip install .tensorboard"):
        hooks.TensorBoard(tmp_path / "run")


@installed
@pytest.mark.slow
def test_tensorboard_shows_each_step_once_and_the_newer_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown(tag):
        seen = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
        return [(event.step, event.value) for event in seen.Scalars(tag)]

    last = solve(4, hooks.TensorBoard(tmp_path)).last
    solve(7, hooks.TensorBoard(tmp_path), start=last)  # killed before its next checkpoint
    whole = solve(9, hooks.TensorBoard(tmp_path), start=last)
    values = [record["value"] for record in whole.history]
    assert [step for step, _ in shown("J")] == list(range(1, 10))
    assert [value for _, value in shown("J")] == pytest.approx(values, rel=1e-6)
    solve(2, hooks.TensorBoard(tmp_path, overwrite=True))
    assert [step for step, _ in shown("residual")] == [1, 2]

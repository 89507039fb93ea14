"""Progress: seen where somebody looks, silent elsewhere, right about the time that is left, and cheap."""

import io
import logging
import sys
import types
from typing import ClassVar

import pytest
import torch

import mfoc
from mfoc import hooks
from mfoc.hooks import progress, views
from tests.problems import mlp

rich = pytest.importorskip("rich.console")
PROBLEM, CLOUD = mlp()
SGD = mfoc.Gradient(lambda params: torch.optim.SGD(params, lr=0.1))


def solve(*run, steps=4, start=None):
    return mfoc.solve(PROBLEM, SGD, CLOUD, steps=steps, hooks=list(run), start=start)


def at(step, reads=None):
    class History(list):
        def __getitem__(self, index):
            if reads is not None:
                reads.append(step)
            return super().__getitem__(index)

    record = {"step": step - 1, "value": 0.25, "residual": 0.5, "seconds": 0.0}
    return mfoc.Iterate(step, [torch.zeros(1)], {}, mfoc.Info(torch.tensor(0.25), []), History([record]))


@pytest.fixture
def terminal(monkeypatch):
    """A console in the place of the terminal; call it with what it is."""

    def made(**kind):
        console = rich.Console(file=io.StringIO(), width=120, **kind)
        plain = hooks.progress_display

        def display():
            shown = plain()
            shown.live.console = console
            return shown

        monkeypatch.setattr(progress, "progress_display", display)
        return console.file

    return made


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [0.0]
    ticking = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(progress, "time", ticking)
    monkeypatch.setattr(views, "time", ticking)
    return now


@pytest.fixture
def moments(monkeypatch):
    """What a terminal would show."""
    shown = []
    view = types.SimpleNamespace(seconds=0.2, show=shown.append, close=lambda: None)
    monkeypatch.setattr(hooks.Progress, "_made", lambda self, steps: view)
    return shown


def test_a_terminal_shows_the_final_figures(terminal):
    out = terminal(force_terminal=True)
    solution = solve(hooks.Progress("digits"))
    last = out.getvalue().splitlines()[-2]
    for words in ("digits", "4/4", f"J {solution.value:.4g}", f"residual {solution.residual:.2g}", "max_steps"):
        assert words in last


def test_where_nobody_looks_nothing_is_printed_and_a_log_is_kept(terminal, capfd, caplog):
    out = terminal(force_terminal=False)
    solve(hooks.Progress())
    with caplog.at_level(logging.INFO, "mfoc.hooks.progress"):
        solve(hooks.Progress("digits"))
    assert (out.getvalue(), *capfd.readouterr()) == ("", "", "")
    assert [message[:11] for message in caplog.messages] == ["digits: 1/4", "digits: 4/4"]


def test_quiet_says_otherwise(terminal):
    out = terminal(force_terminal=True)
    solve(hooks.Progress(quiet=True))
    assert out.getvalue() == ""
    out = terminal(force_terminal=False)
    solve(hooks.Progress(quiet=False))
    assert "4/4" in out.getvalue()


def test_a_notebook_has_one_line_that_is_written_over(terminal, monkeypatch):
    class Shown:
        lines: ClassVar[list[str]] = []

        def __init__(self, data, raw, display_id):
            assert (raw, display_id) == (True, True)
            self.update(data, raw)

        def update(self, data, raw):
            self.lines.append(data["text/plain"])

    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=Shown))
    terminal(force_jupyter=True)
    solve(hooks.Progress("digits"))
    assert "1/4" in Shown.lines[0]
    assert "4/4" in Shown.lines[-1]
    assert all("\n" not in line and "J 0." in line for line in Shown.lines)


def test_the_time_left_is_that_of_the_steps_to_come(clock, moments):
    bar = hooks.Progress()
    bar.start(1000)
    clock[0] += 30.0  # the first step warms up
    bar(at(901))  # resumed at 900
    assert moments[-1].left == 99 * 30.0
    for step in range(902, 911):
        clock[0] += 2.0
        bar(at(step))
    assert moments[-1].left == 90 * 2.0
    assert str(moments[-1]).endswith("0:03:00 left")
    clock[0] += 180.0
    bar(at(1000))
    assert moments[-1].left is None


def test_numbers_are_read_a_few_times_a_second_however_short_the_steps(clock, moments):
    reads, bar = [], hooks.Progress()
    bar.start(2000)
    for step in range(1, 1001):
        clock[0] += 0.001
        bar(at(step, reads))
    assert len(moments) == 5  # 1 second
    assert len(set(reads)) == 5


def test_one_is_used_again_and_one_within_another(terminal):
    out = terminal(force_terminal=True)
    bar = hooks.Progress("outer")
    solve(bar, lambda it: solve(hooks.Progress("inner")) and None)
    solve(bar)
    assert "outer" in out.getvalue().splitlines()[-2]


def test_bad_arguments():
    with pytest.raises(mfoc.InvalidType, match="label"):
        hooks.Progress(3)
    with pytest.raises(mfoc.InvalidType, match="display"):
        hooks.Progress(display="here")
    with pytest.raises(mfoc.InvalidType, match="quiet"):
        hooks.Progress(quiet="yes")

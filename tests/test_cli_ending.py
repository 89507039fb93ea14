"""A command ends quietly: one line and a status where something is wrong, and without torch where none is needed."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mfoc
from mfoc.cli import command, ending, main

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(command._parser()._subparsers._group_actions[0].choices)


def run(*arguments, code="from mfoc.cli import main; sys.exit(main())", **options):
    """In a process of its own, from this source."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = [sys.executable, "-c", f"import sys; {code}", *arguments]
    return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["tutorials", "list"], ["diagnose", "--help"]])
def test_what_needs_no_torch_starts_without_it(arguments):
    code = "from mfoc.cli import main\ntry: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    done = run(*arguments, code="\n" + code)
    assert (done.returncode, done.stderr) == (0, "False\n")


def test_the_version_is_that_of_the_library(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"mfoc {mfoc.__version__}\n"


def test_python_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "mfoc", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"mfoc {mfoc.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_examples_that_can_be_read(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    examples = [line.split("  #")[0] for line in told.splitlines() if line.startswith("  mfoc ")]
    assert examples
    for line in examples:  # what is behind two spaces says what it does
        words = line.split("|")[0].strip().split("  ")[0].split()
        command._parser().parse_args(words[1:])


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["doctor", "--nothing"], ["tutorials", "run"], ["bench", "x"]])
def test_a_command_line_that_cannot_be_read_is_told_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mfoc")
    assert "--help" in line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (mfoc.InvalidValue("wrong\nhere"), "mfoc: wrong here"),
        (PermissionError(13, "Permission denied", "figures"), "mfoc: [Errno 13] Permission denied: 'figures'"),
        (RuntimeError("deep inside"), "mfoc: RuntimeError: deep inside (--traceback shows where)"),
        (ending.TheirFault("nets:deep", KeyError("a")), "mfoc: nets:deep failed: KeyError: 'a'"),
        (ending.TheirFault("nets:deep", ValueError("first\nlast")), "mfoc: nets:deep failed: ValueError: last"),
    ],
)
def test_an_error_is_one_line_and_status_1(error, told, capsys):
    def fails():
        raise error

    assert ending.ending(fails) == 1
    assert capsys.readouterr().err == f"{told}\n"
    assert ending.ending(fails, traceback=True) == 1
    assert "in fails" in capsys.readouterr().err


def test_ctrl_c_ends_a_command_although_a_solve_would_answer_it(capsys):
    """`solve` gives back what it has at Ctrl-C, and a script goes on; a command does not."""

    def interrupted():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            return 0
        return 1

    before = signal.getsignal(signal.SIGINT)
    assert ending.ending(interrupted) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr() == ("", "")


def test_who_stops_reading_stops_the_command_without_a_word():
    code = "from mfoc.cli.ending import ending; sys.exit(ending(lambda: [print('x' * 80) for _ in range(10**5)] and 0))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [sys.executable, "-c", f"import sys; {code}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    started.stdout.read(10)
    started.stdout.close()
    assert started.stderr.read() == b""
    assert started.wait(60) == 141


def test_a_closed_output_is_no_error():
    """As of `mfoc tutorials >&-`: Python has no `sys.stdout` there."""
    done = run("tutorials", code="sys.stdout = None\nfrom mfoc.cli import main\nsys.exit(main())")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_benchmarks_of_a_wheel_are_told_to_be_in_a_clone(monkeypatch, capsys, tmp_path):
    from mfoc.cli import bench

    monkeypatch.setattr(bench, "__file__", str(tmp_path / "mfoc" / "cli" / "bench.py"))
    assert main(["bench", "--quick"]) == 1
    assert "clone" in capsys.readouterr().err


def test_the_benchmarks_of_a_clone_run_there(monkeypatch):
    from mfoc.cli import bench

    asked = {}
    monkeypatch.setattr(bench.subprocess, "run", lambda *given, **more: asked.update(more, command=given[0]) or BENCHED)
    assert main(["bench", "--quick", "--only", "lq", "ntk"]) == 0
    assert asked["command"][1:] == ["-m", "tests.benchmarks", "--quick", "--only", "lq", "ntk"]
    assert asked["cwd"] == ROOT


BENCHED = argparse.Namespace(returncode=0)

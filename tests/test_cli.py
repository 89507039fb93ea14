"""The command draws phase diagrams, and says what is wrong with what it is given."""

import sys

import pytest

from mfoc.cli import main

GRIDS = ["--weight-variances", "0.1", "4", "20", "--bias-variances", "0", "1", "10"]


@pytest.mark.parametrize(("activation", "told"), [("tanh", "from (1, 0) to"), ("relu", "critical line: (2, 0)")])
def test_phase_diagram(activation, told, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "figure.png"
    assert main(["phase-diagram", "--activation", activation, *GRIDS, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert told in printed
    assert str(out) in printed


def test_the_file_is_named_after_the_activation(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["phase-diagram", "--activation", "relu", *GRIDS]) == 0
    assert (tmp_path / "phase_diagram_relu.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--activation", "tanj"], "expected one such as tanh, relu"),
        (["--activation", "softmax"], "does not act on every entry alone"),
        (["--activation", "tanh", "--weight-variances", "1", "2", "x"], "expected LOW HIGH COUNT"),
        (["--activation", "tanh", "--weight-variances", "2", "1", "5"], "LOW < HIGH"),
        (["--activation", "tanh", "--weight-variances", "1", "2", "1"], "at least 2"),
        (["--activation", "tanh", "--weight-variances", "0", "2", "5"], "weight_variances holds 0"),
        (["--activation", "tanh", "--bias-variances", "-1", "2", "5"], "bias_variances holds -1"),
        (["--activation", "tanh", "--bias-variances", "nan", "2", "5"], "LOW < HIGH"),
        (["--activation", "relu", "--out", "figure.txt"], "ends in"),
    ],
)
def test_what_it_refuses(arguments, told, capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["phase-diagram", *arguments]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()  # nor a warning of torch's
    assert told in line
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_cannot_be_saved_is_told_before_the_work(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("mfoc.analysis.propagation.phase_diagram", lambda *given: pytest.fail("it began"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for out, told in (("file/figure.png", "file"), ("folder.png", "expected a file name"), ("a.txt", "ends in")):
        assert main(["phase-diagram", "--activation", "tanh", "--out", str(tmp_path / out)]) == 1
        assert told in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert main(["phase-diagram", "--activation", "tanh"]) == 1
    assert "pip install 'matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--activation", "tanh", "--weight-variances", "1", "2"]])
def test_missing_arguments(arguments):
    with pytest.raises(SystemExit) as stop:
        main(["phase-diagram", *arguments])
    assert stop.value.code == 2

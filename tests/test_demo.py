"""The demo runs from the command line, and says what it needs."""

import sys

import pytest
import torch

from mfoc.cli import main


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    threads = torch.get_num_threads()
    assert main(["demo", "--out", str(tmp_path), "--scale", "0.05"]) == 0
    out = capsys.readouterr().out
    for word in ("SGD", "Adam", "MSA", "E-MSA", "test acc.", "residual", "Certificate on"):
        assert word in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "demo_certificate.png",
        "demo_cloud.png",
        "demo_loss.png",
    ]
    assert torch.get_num_threads() == threads


def test_demo_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["demo"]) == 1
    assert "pip install 'matplotlib>=3.8,<4' 'rich>=13,<16'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["demo", "--scale", "0"], ["demo", "--seed", "-1"], ["nothing"]])
def test_bad_command_lines(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2

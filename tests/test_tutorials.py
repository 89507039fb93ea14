"""Every tutorial runs alone, in smoke mode, and draws."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))


def test_there_are_tutorials():
    assert TUTORIALS


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(script, tmp_path):
    environment = {**os.environ, "MFOC_SMOKE": "1", "MFOC_FIGURES": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    figures = list(tmp_path.glob("*.png"))
    assert figures, "the tutorial drew nothing"
    for figure in figures:
        assert figure.read_bytes().startswith(b"\x89PNG"), figure.name

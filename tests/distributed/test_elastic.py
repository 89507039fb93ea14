"""Elastic restarts: a worker is killed, torchrun starts all of them again, and the run is bitwise the undisturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import elastic_run
from tests.problems import same_bits
from tests.ranks import free_port, on_ranks

VICTIM = 0  # it writes the checkpoints, and without torchrun it would hold the store


def restarted(folder: Path) -> None:
    """A run by torchrun, whose own process holds the store, so that it survives every worker."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--monitor-interval", "1",
        elastic_run.__file__, str(folder), str(VICTIM),
    ]  # fmt: skip
    paths = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONFAULTHANDLER": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def undisturbed() -> Any:
    folder = Path(os.environ["FOLDER"])
    return elastic_run.solved(folder)[0]


@pytest.mark.slow
def test_a_restarted_run_is_bitwise_the_undisturbed(tmp_path, monkeypatch):
    for name in ("restarted", "undisturbed", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("FOLDER", str(tmp_path / "undisturbed"))
    expected = [found for (found,) in on_ranks(tmp_path / "out", undisturbed)]
    folder = tmp_path / "restarted"
    restarted(folder)
    for rank in range(2):
        worker = torch.load(folder / f"{rank}.pt", weights_only=True)
        assert worker["attempt"] == 1
        assert worker["begun"] == elastic_run.KILLED // elastic_run.EVERY * elastic_run.EVERY
        assert same_bits(worker["found"], expected[rank])
    words = (folder / f"said-{1 - VICTIM}").read_text(encoding="utf-8")
    assert words.startswith(f"rank {VICTIM} failed: its process is gone")
    assert f"it was in step {elastic_run.KILLED}" in words
    assert f"the last checkpoint is {folder / 'checkpoint'}, of step 12" in words

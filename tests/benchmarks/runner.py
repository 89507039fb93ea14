"""Runs benchmark scripts one after another, each in a process of its own, and collects the ratios they report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@dataclass(frozen=True)
class Run:
    """What a script did.

    Attributes:
        script: its name, ``"bench_lq"``.
        records: the ratios that it reported, as ``timing.report`` writes them.
        seconds: of wall time.
        failed: the last line of what it said, if it failed.
    """

    script: str
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    failed: str = ""


def scripts(*, only: list[str] | None = None, knows: str = "") -> list[str]:
    """The benchmarks by name, those whose name holds one of the words, and whose source calls ``timing.<knows>()``.

    Of the quick ones, those that have a headline.
    """
    found = sorted(path.stem for path in FOLDER.glob("bench_*.py"))
    if knows:
        words = [f"{knows}()", *(["headline="] if knows == "quick" else [])]
        sources = {name: (FOLDER / f"{name}.py").read_text(encoding="utf-8") for name in found}
        found = [name for name in found if all(word in sources[name] for word in words)]
    return [name for name in found if not only or any(word in name for word in only)]


def run(script: str, *, quick: bool = False, device: str = "cpu", timeout: float | None = None) -> Run:
    """One script: what it prints is passed on."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records"
        told = {"MFOC_BENCH_RECORDS": str(records), "MFOC_BENCH_DEVICE": device, "MFOC_BENCH_QUICK": "1" * quick}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        failed = _failure(script, {**os.environ, **told, "PYTHONPATH": path}, timeout)
        lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    return Run(script, [json.loads(line) for line in lines], time.perf_counter() - began, failed)


def _failure(script: str, environment: dict[str, str], timeout: float | None) -> str:
    """Why it failed, in one line; empty where it did not."""
    command = [sys.executable, "-m", f"tests.benchmarks.{script}"]
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"took more than {timeout:.0f} s"
    sys.stderr.write(ended.stderr)
    return "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["no word of why"])[-1]

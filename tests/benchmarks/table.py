"""The ratios of a round of benchmarks as a table: markdown, JSON, and the block of the README."""

from __future__ import annotations

import json
import re
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.benchmarks.runner import Run
from tests.benchmarks.timing import machine
from tests.readme import README
from tests.readme import write as write_block

PACKAGES = (
    "torch", "numpy", "scipy", "pyro-ppl", "torchattacks", "learn2learn", "mpc", "torchdiffeq", "casadi",
    "curvlinops-for-pytorch",
)  # fmt: skip
HEAD = "| what | ratio of times | median | quartiles | target | benchmark |\n|---|---|---|---|---|---|"


def versions() -> dict[str, str]:
    """Of what is installed of the packages that take part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def met(record: dict[str, Any]) -> bool | None:
    """Whether a ratio is what it should be; None where its target is no ``at most 1.05`` or ``at least 2``."""
    asked = re.match(r"at (most|least) ([\d.]+)", record["target"])
    if asked is None:
        return None
    median, bound = float(record["median"]), float(asked[2])
    return median <= bound if asked[1] == "most" else median >= bound


def row(script: str, record: dict[str, Any]) -> str:
    """A line of the table."""
    verdict = {None: "", True: " (met)", False: " (missed)"}[met(record)]
    spread = f"{record['low']:.3g} to {record['high']:.3g}"
    what = f"| {record['name']} | {record['of']} / {record['to']} | {record['median']:.3g} | {spread} "
    return f"{what}| {record['target']}{verdict} | `{script}` |"


def markdown(runs: list[Run], *, headline: bool = False) -> str:
    """The machine, the versions and the ratios; with ``headline`` only the chief ones."""
    rows = [row(each.script, r) for each in runs for r in each.records if r["headline"] or not headline]
    packages = ", ".join(f"{name} {version}" for name, version in versions().items() if name != "torch")
    note = "Ratios of thread-CPU times, medians, both sides in turns in one process."
    return "\n".join([f"{machine()}; {packages}. {note}", "", HEAD, *rows])


def write(runs: list[Run], folder: Path) -> None:
    """``benchmarks.md`` and ``benchmarks.json`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    took = [f"- `{each.script}`: {each.seconds:.0f} s{f', FAILED: {each.failed}' * bool(each.failed)}" for each in runs]
    text = "\n".join([f"# Benchmarks, {date.today()}", "", markdown(runs), "", "## Scripts", "", *took, ""])
    (folder / "benchmarks.md").write_text(text, encoding="utf-8")
    told = {
        "date": str(date.today()),
        "machine": machine(),
        "versions": versions(),
        "ratios": [{"script": each.script, **r, "met": met(r)} for each in runs for r in each.records],
        "scripts": [{"name": each.script, "seconds": round(each.seconds, 1), "failed": each.failed} for each in runs],
    }
    (folder / "benchmarks.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def into_readme(runs: list[Run], readme: Path = README) -> None:
    """Writes the headline ratios between the markers."""
    write_block("benchmarks", markdown(runs, headline=True), readme)

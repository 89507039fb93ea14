"""``mfoc bench``: the benchmarks of a clone, which no wheel holds."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from mfoc.errors import InvalidValue

_EXAMPLES = """examples:
  mfoc bench --quick             the headline ratios, in under three minutes
  mfoc bench --only lq ntk       the benchmarks whose names hold one of these words"""


def add(commands: Any) -> None:
    """Adds the command to those of ``mfoc``."""
    command = commands.add_parser(
        "bench",
        help="run the benchmarks of a clone",
        description="Runs the benchmarks and writes their table; they are in a clone, and not in the wheel.",
        epilog=_EXAMPLES,
    )
    command.add_argument("--quick", action="store_true", help="those that have a short version, in it")
    command.add_argument("--only", nargs="+", metavar="WORD", help="those whose names hold one of the words")
    command.add_argument("--device", help="such as cuda: those that know devices (default: cpu)")
    command.add_argument("--out", type=Path, help="folder for the table (default: benchmarks, in the clone)")
    command.set_defaults(run=_run)


def clone() -> Path:
    """The folder of the clone that this library runs from.

    Raises:
        InvalidValue: it does not run from one.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "tests" / "benchmarks" / "__main__.py").is_file():
        raise InvalidValue(
            f"the benchmarks are not in the wheel, which is installed in {root}: clone the repository (or unpack the "
            "sdist), and run `pip install -e .` and `mfoc bench` in it"
        )
    return root


def _run(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "tests.benchmarks"]
    command += ["--quick"] * options.quick
    command += ["--device", options.device] if options.device else []
    command += ["--out", str(options.out.resolve())] if options.out else []
    command += ["--only", *options.only] if options.only else []
    return subprocess.run(command, cwd=clone(), check=False).returncode

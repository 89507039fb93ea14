"""``mfoc demo``."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mfoc.cli.ending import WRONG_USAGE, blaming
from mfoc.cli.needs import need
from mfoc.errors import InvalidValue
from mfoc.neighbours import refuse_strangers

_GROUP = "mfoc.demos"
_EXAMPLES = """examples:
  mfoc demo                      about a minute
  mfoc demo --scale 0.1          a tenth of the seconds of each solver
  mfoc demo --paradigms          and then a robust, a Bayesian and a meta-learned network

Other packages add to --paradigms by an entry point in the group "mfoc.demos": a function run(out, *, seed, scale)."""


def add(commands: Any) -> None:
    """Adds the command to those of ``mfoc``."""
    command = commands.add_parser(
        "demo",
        help="solve handwritten digits with several solvers and certify the solutions",
        description="One residual network on handwritten digits, one problem, several solvers, and a certificate.",
        epilog=_EXAMPLES,
    )
    command.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures (default: figures)")
    command.add_argument("--seed", type=int, default=0, help="of the split, the network and the batches (default: 0)")
    command.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="fraction of the seconds of each solver, and of the steps of the paradigms (default: 1)",
    )
    command.add_argument("--paradigms", action="store_true", help="then the demos of the paradigms that are installed")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if fault := _fault(options):
        sys.stderr.write(f"mfoc demo: {fault}\n")
        raise SystemExit(WRONG_USAGE)
    need("the demo", ["matplotlib", "rich", "sklearn"])
    more = _of_paradigms() if options.paradigms else []  # what is missing is said before the minute that the race takes

    from mfoc.demo import run

    run(options.out, seed=options.seed, scale=options.scale)
    for point in more:
        with blaming(f"the demo {point.name!r} ({point.value})"):
            point.load()(options.out, seed=options.seed, scale=options.scale)
    return 0


def _fault(options: argparse.Namespace) -> str:
    if not 0 < options.scale <= 1:
        return f"--scale is {options.scale}; expected a number in (0, 1]"
    if not 0 <= options.seed < 2**32:
        return f"--seed is {options.seed}; expected an integer from 0 to 2**32 - 1"
    return ""


def _of_paradigms() -> list[EntryPoint]:
    """The demos that are installed.

    Raises:
        InvalidValue: there is none.
        NameClash: another package has the name of ours.
    """
    refuse_strangers()
    points = sorted({(point.name, point) for point in entry_points(group=_GROUP)}, key=lambda pair: pair[0])
    if not points:
        raise InvalidValue(
            f"no demo of a paradigm is installed (entry points of the group {_GROUP!r}): in a clone, "
            "`pip install -e .` writes those of this library"
        )
    return [point for _, point in points]

"""The command line: what is read from it, which command runs, and how that ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from mfoc import __version__
from mfoc.cli.bench import add as add_bench
from mfoc.cli.demo import add as add_demo
from mfoc.cli.diagnosis import add as add_diagnosis
from mfoc.cli.doctor import add as add_doctor
from mfoc.cli.ending import WRONG_USAGE, ending
from mfoc.cli.paradigms import add as add_paradigms
from mfoc.cli.phases import add as add_phases
from mfoc.cli.tutorials import add as add_tutorials

_STATUS = """exit status:
  0    all is well
  1    something failed, or is to be mended; one line on standard error says what
  2    the command line cannot be read
  3    `diagnose` found a network that does not train as it stands
  130  interrupted by Ctrl-C

examples:
  mfoc demo                      several solvers on handwritten digits, and a certificate
  mfoc tutorials run 1           the first tutorial; its figures go to ./figures
  mfoc diagnose nets:deep --shape 3,32,32
  mfoc doctor                    what is installed, and what is missing"""


class _Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line, and whose texts stand as written; those of its commands are alike."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(WRONG_USAGE, f"{self.prog}: {message} (`{self.prog} --help` tells more)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status.

    Args:
        arguments: what follows ``mfoc`` on the command line; ``sys.argv`` when None.
    """
    if sys.stdout is None:  # it was closed, as by `>&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    options = _parser().parse_args(arguments)
    return ending(lambda: int(options.run(options)), traceback=getattr(options, "traceback", False))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mfoc", description="Training as mean-field optimal control.", epilog=_STATUS)
    parser.add_argument("--version", action="version", version=f"mfoc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_demo, add_tutorials, add_phases, add_diagnosis, add_paradigms, add_bench, add_doctor):
        add(commands)
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""``mfoc doctor``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mfoc.cli.ending import FAILED

_EXAMPLES = """examples:
  mfoc doctor
  mfoc doctor --json | python -m json.tool

exit status: 1 where something is broken or not safe; what is only missing is no fault"""


def add(commands: Any) -> None:
    """Adds the command to those of ``mfoc``."""
    command = commands.add_parser(
        "doctor",
        help="look at what is installed: what does not fit, is not safe, or is missing",
        description="Versions, extras, devices; what does not fit, and one command for all that is missing.",
        epilog=_EXAMPLES,
    )
    command.add_argument("--json", action="store_true", help="print it for a program to read")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from mfoc.doctor import examine, install_missing, report

    findings = examine()
    sys.stdout.write(report(findings, as_json=options.json, install=install_missing(findings)) + "\n")
    return FAILED if any(finding.bad for finding in findings) else 0

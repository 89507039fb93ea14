"""``mfoc paradigms``."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mfoc.cli.ending import FAILED
from mfoc.neighbours import refuse_strangers

_GROUP = "mfoc.paradigms"
_EXAMPLES = """examples:
  mfoc paradigms
  mfoc paradigms --json

A package of yours is listed, and found by paradigms.load(NAME), with this in its pyproject.toml:
  [project.entry-points."mfoc.paradigms"]
  NAME = "your.module"

exit status: 1 where one of them does not load"""


@dataclass(frozen=True)
class Installed:
    """A paradigm, as its entry point tells.

    Attributes:
        name: of the entry point.
        module: what it names.
        package: the distribution that brings it, and its version.
        purpose: the first line of the module's docstring.
        functions: what it exports.
        fault: why it does not load; "" where it does.
    """

    name: str
    module: str
    package: str
    purpose: str = ""
    functions: tuple[str, ...] = ()
    fault: str = ""


def add(commands: Any) -> None:
    """Adds the command to those of ``mfoc``."""
    command = commands.add_parser(
        "paradigms",
        help="list the paradigms that are installed",
        description="Lists the entry points of the group mfoc.paradigms, and whether they load.",
        epilog=_EXAMPLES,
    )
    command.add_argument("--json", action="store_true", help="print it for a program to read")
    command.set_defaults(run=_run)


def installed() -> list[Installed]:
    """Each that is installed, by name; imports them."""
    points = {(point.name, point.value): point for point in entry_points(group=_GROUP)}
    return [_look_at(point) for _, point in sorted(points.items())]


def _look_at(point: EntryPoint) -> Installed:
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
    try:
        if point.module.partition(".")[0] == "paradigms":
            refuse_strangers()
        module = point.load()
    except Exception as error:  # of anybody's code: it is reported beside the others
        return Installed(point.name, point.value, package, fault=f"{type(error).__name__}: {error}")
    names = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
    found = {name: getattr(module, name, None) for name in names}
    purpose = (inspect.getdoc(module) or "").partition("\n")[0]
    functions = tuple(sorted(name for name, each in found.items() if inspect.isfunction(each)))
    return Installed(point.name, point.value, package, purpose, functions)


def _run(options: argparse.Namespace) -> int:
    found = installed()
    if options.json:
        sys.stdout.write(json.dumps([asdict(each) for each in found], indent=2) + "\n")
    elif not found:
        sys.stdout.write("no paradigm is installed: in a clone, `pip install -e .` writes the entry points\n")
    else:
        sys.stdout.write("\n".join(map(_told, found)) + "\n")
    return FAILED if any(each.fault for each in found) else 0


def _told(one: Installed) -> str:
    head = f"{one.name}  ({one.module}, of {one.package})"
    if one.fault:
        return f"{head}\n    does not load: {' '.join(one.fault.split())}"
    return f"{head}\n    {one.purpose}\n    functions: {', '.join(one.functions) or 'none'}"

"""``mfoc tutorials``: listed, run, and copied to be worked on; from a clone, and from an installed wheel."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mfoc.cli.ending import blaming
from mfoc.cli.needs import need
from mfoc.cli.notebook import cells, notebook
from mfoc.errors import InvalidValue

_EXAMPLES = """examples:
  mfoc tutorials                          what there is
  mfoc tutorials run 1 --smoke            the first, in seconds
  mfoc tutorials run kernels --out figs   by a part of its name; its figures go to ./figs
  mfoc tutorials open 3                   a notebook to work on, in this folder
  mfoc tutorials open 3 --script          the same as a script in cells"""


def add(commands: Any) -> None:
    """Adds the command to those of ``mfoc``."""
    command = commands.add_parser("tutorials", help="list, run or copy the tutorials", epilog=_EXAMPLES)
    command.set_defaults(run=_list)
    actions = command.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="number, title and purpose of each (the default)").set_defaults(run=_list)
    one = {"metavar": "NAME", "help": "its number, or a part of its name"}
    run = actions.add_parser("run", help="run one here", epilog=_EXAMPLES)
    run.add_argument("name", **one)
    run.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    run.add_argument("--out", type=Path, default=Path("figures"), help="folder for its figures (default: figures)")
    run.add_argument("--traceback", action="store_true", help="show where an error was raised")
    run.set_defaults(run=_run)
    copy = actions.add_parser("open", help="copy one into a folder", epilog=_EXAMPLES)
    copy.add_argument("name", **one)
    copy.add_argument("--script", action="store_true", help="as a script in cells (default: a notebook)")
    copy.add_argument("--out", type=Path, default=Path(), help="folder for the copy (default: this one)")
    copy.set_defaults(run=_open)


def folder() -> Path:
    """Where the tutorials are: in the package, of a wheel; beside it, of a clone.

    Raises:
        InvalidValue: they are in neither.
    """
    package = Path(__file__).resolve().parents[1]
    for place in (package / "tutorials", package.parent / "tutorials"):
        if any(place.glob("[0-9]*.py")):
            return place
    raise InvalidValue(f"the tutorials are neither in {package} nor beside it: this installation lacks them")


def scripts() -> list[Path]:
    """Of each tutorial, by number."""
    return sorted(folder().glob("[0-9]*.py"))


def find(name: str) -> Path:
    """The tutorial of a number, or with a part of a name.

    Raises:
        InvalidValue: there is none, or several.
    """
    known = scripts()
    if name.isdecimal():
        found = [script for script in known if int(script.stem.partition("_")[0]) == int(name)]
    else:
        wanted = name.removesuffix(".py").lower().replace(" ", "_").replace("-", "_")
        found = [script for script in known if wanted == script.stem] or [
            script for script in known if wanted and wanted in script.stem
        ]
    if len(found) == 1:
        return found[0]
    several = ", ".join(script.stem for script in found or known)
    raise InvalidValue(
        f"several tutorials have {name!r} in their names; say which of {several}"
        if found
        else f"no tutorial is {name!r}; expected a number, or a part of one of {several}"
    )


def told(script: Path) -> tuple[str, str]:
    """Its title, and the first sentence of its purpose."""
    text = next((text for kind, text in cells(script.read_text(encoding="utf-8")) if kind == "markdown"), "")
    title, _, rest = text.strip().partition("\n")
    paragraph = " ".join(rest.strip().partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?]) |:$", paragraph, maxsplit=1)[0]
    return title.lstrip("# "), re.sub(r"\*\*|`", "", sentence)


def _list(_options: argparse.Namespace) -> int:
    lines = []
    for script in scripts():
        title, purpose = told(script)
        lines.append(f"{script.stem.partition('_')[0]}  {title}\n      {purpose}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    script, out = find(options.name), options.out.resolve()
    need(script.stem, {"matplotlib"} | _imported(script))  # each draws
    out.mkdir(parents=True, exist_ok=True)
    before = _times(out)
    with _environment(MFOC_FIGURES=str(out), MFOC_SMOKE="1" if options.smoke else ""), blaming(f"{script.stem}"):
        runpy.run_path(str(script), run_name="__main__")
    drawn = [name for name, time in sorted(_times(out).items()) if before.get(name) != time]
    sys.stdout.write(f"\nfigures in {out}: {', '.join(drawn) or 'none'}\n")
    return 0


def _imported(script: Path) -> set[str]:
    """The top-level names of what a script imports."""
    found = re.findall(r"^(?:import|from) (\w+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    return set(found)


def _times(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in out.iterdir() if file.is_file()}


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _open(options: argparse.Namespace) -> int:
    script = find(options.name)
    target = options.out / (script.name if options.script else f"{script.stem}.ipynb")
    if target.exists():
        raise InvalidValue(f"{target} is there already; move it away, or give another folder by --out")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.script:
        shutil.copyfile(script, target)
    else:
        target.write_text(notebook(script.read_text(encoding="utf-8")), encoding="utf-8")
    run = f"python {target}" if options.script else f"jupyter lab {target}"
    sys.stdout.write(f"{target} (to work on it: {run})\n")
    return 0

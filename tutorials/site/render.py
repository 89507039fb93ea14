"""Execute the tutorials, two at a time, and keep their outputs and figures for the pages of the site.

    python tutorials/site/render.py             every tutorial at full size, into tutorials/site/.cache
    MFOC_SMOKE=1 python tutorials/site/render.py    with tiny budgets
    python tutorials/site/render.py run SCRIPT FOLDER    one, into a folder

What was executed is kept until the tutorial, the library or this file changes.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent.parent
CACHE = Path(os.environ.get("MFOC_DOCS_CACHE", SITE / ".cache"))


@dataclass
class Cell:
    """A cell: its text, the line that it begins at, and what it put out (``{"text": ...}`` or ``{"image": ...}``)."""

    markdown: bool
    text: str
    line: int = 1
    outputs: list[dict[str, str]] = field(default_factory=list)


def scripts() -> list[Path]:
    """All tutorials, in order."""
    return sorted(SITE.parent.glob("[0-9]*.py"))


def cells_of(source: str) -> list[Cell]:
    """The cells of a script; what stands before the first marker is code."""
    cells = [Cell(markdown=False, text="")]
    for number, line in enumerate(source.splitlines(), start=1):
        marker = re.match(r"# %%(.*)$", line)
        if marker:
            cells.append(Cell("[markdown]" in marker[1], "", number + 1))
        else:
            cells[-1].text += (re.sub(r"^# ?", "", line) if cells[-1].markdown else line) + "\n"
    return [cell for cell in cells if cell.text.strip()]


def key_of(script: Path) -> str:
    """What the outputs of a tutorial depend on, as a digest: itself, the library, this file, and the budget."""
    what = os.environ.get("MFOC_SMOKE", "").encode() + b"\0" + script.read_bytes()
    return hashlib.sha256(what + _library()).hexdigest()


@functools.cache
def _library() -> bytes:
    """A digest of the library, and of what executes tutorials."""
    digest = hashlib.sha256()
    modules = sorted(path for room in ("mfoc", "paradigms") for path in (ROOT / room).rglob("*.py"))
    for path in (SITE / "render.py", *modules):
        digest.update(path.read_bytes())
    return digest.digest()


def kept(script: Path) -> list[Cell] | None:
    """The cells of a tutorial with the outputs of its last execution, or None where that is missing or out of date."""
    try:
        saved = json.loads((CACHE / script.stem / "cells.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [Cell(**entry) for entry in saved["cells"]] if saved["key"] == key_of(script) else None


def execute(script: Path, folder: Path) -> list[Cell]:
    """Run a tutorial cell by cell, as a notebook would: prints and what a cell ends with are its outputs.

    Args:
        script: in percent format.
        folder: for its images.
    """
    module = types.ModuleType("__main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = module  # what it pickles, or starts processes with, is found there
    sys.path.insert(0, str(script.parent))
    cells = cells_of(script.read_text(encoding="utf-8"))
    count = 0
    for cell in cells:
        if cell.markdown:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _run(cell, str(script), module.__dict__)
        text = "\n".join(line.rsplit("\r", 1)[-1].rstrip() for line in printed.getvalue().split("\n")).strip("\n")
        if text:
            cell.outputs.append({"text": text})
        for shown in value if isinstance(value, (list, tuple)) and any(map(_is_figure, value)) else [value]:
            if _is_figure(shown):
                count += 1
                shown.savefig(folder / f"{script.stem[:2]}-{count}.png", dpi=120)
                cell.outputs.append({"image": f"{script.stem[:2]}-{count}.png"})
            elif isinstance(shown, Path) and shown.suffix in {".gif", ".png", ".svg"} and shown.exists():
                shutil.copyfile(shown, folder / shown.name)
                cell.outputs.append({"image": shown.name})
            elif shown is not None:
                cell.outputs.append({"text": str(shown)})
    return cells


def _run(cell: Cell, name: str, names: dict[str, Any]) -> Any:
    """Execute a cell; the value of its last line, where that is an expression and does not end with a semicolon."""
    tree = ast.increment_lineno(ast.parse(cell.text, name), cell.line - 1)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), name, "eval"), names)
    return None if cell.text.rstrip().endswith(";") else value


def _is_figure(value: Any) -> bool:
    return any(kind.__name__ == "Figure" and kind.__module__.startswith("matplotlib") for kind in type(value).__mro__)


def run(script: Path, folder: Path) -> None:
    """Execute one tutorial in this process and write its cells beside its images."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = execute(script, folder)
    saved = {"key": key_of(script), "cells": [asdict(cell) for cell in cells]}
    (folder / "cells.json").write_text(json.dumps(saved, indent=1), encoding="utf-8")


def refresh(script: Path) -> str:
    """Execute one tutorial in a process of its own, unless what is kept will do; a line that says what was done."""
    if kept(script) is not None:
        return f"{script.stem}: kept"
    folder, begin = CACHE / script.stem, time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "MFOC_FIGURES": str(folder / "figures"),
    }
    command = [sys.executable, str(SITE / "render.py"), "run", str(script), str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr[-4000:]}")
    return f"{script.stem}: {time.monotonic() - begin:.0f} s"


def main(arguments: list[str]) -> int:
    """Execute every tutorial that needs it, or the one that is named."""
    if arguments[:1] == ["run"]:
        run(Path(arguments[1]).resolve(), Path(arguments[2]).resolve())
        return 0
    failures = 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        for result in [pool.submit(refresh, script) for script in scripts()]:
            try:
                print(result.result(), flush=True)
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                failures += 1
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

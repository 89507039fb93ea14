"""The README's parts: blocks that commands write, snippets, and what they print.

    python -m tests.readme    # runs the snippets whose output is shown, and writes what they print

A snippet is a block of Python. A block of plain text after it, before anything else, is what it prints.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
_SNIPPET = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Snippet:
    """A block of Python, and what is said that it prints (None where nothing is)."""

    code: str
    output: str | None


def snippets(text: str) -> list[Snippet]:
    """Those of a page of Markdown, in their order."""
    return [Snippet(found["code"], found["output"]) for found in _SNIPPET.finditer(text)]


def run(code: str) -> str:
    """What a snippet prints, run by itself.

    Raises:
        AssertionError: it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "snippet.py"
        script.write_text(code, encoding="utf-8")
        command = [sys.executable, str(script)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def alike(printed: str, expected: str, *, within: float = 0.05) -> bool:
    """Whether two outputs have the same words, and numbers that differ by less than a fraction."""
    if _NUMBER.sub("#", printed).split() != _NUMBER.sub("#", expected).split():
        return False
    pairs = zip(_NUMBER.findall(printed), _NUMBER.findall(expected), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=within, abs_tol=1e-3) for a, b in pairs)


def replaced(text: str, name: str, body: str) -> str:
    """A page with what is between ``<!-- name: begin ... -->`` and ``<!-- name: end -->`` replaced.

    Raises:
        AssertionError: there are no such marks.
    """
    begin = re.search(rf"<!-- {name}: begin.*?-->", text)
    assert begin, f"no mark <!-- {name}: begin ... -->"
    after = text.index(f"<!-- {name}: end -->", begin.end())
    return f"{text[: begin.end()]}\n\n{body.strip()}\n\n{text[after:]}"


def write(name: str, body: str, readme: Path = README) -> None:
    """Writes a block of the README."""
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), name, body), encoding="utf-8")


def _shown(found: re.Match[str]) -> str:
    if found["output"] is None:
        return found[0]
    return f"```python\n{found['code']}```\n\n```text\n{run(found['code']).strip()}\n```\n"


def main() -> None:
    README.write_text(_SNIPPET.sub(_shown, README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

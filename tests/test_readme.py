"""Every snippet of the README runs, in order of appearance, each by itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number, tmp_path):
    script = tmp_path / "snippet.py"
    script.write_text(SNIPPETS[number], encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_it_opens_with_an_example_of_about_ten_lines():
    text = README.read_text(encoding="utf-8")
    assert text.index("```python") < 200
    assert len(SNIPPETS[0].strip().splitlines()) <= 14


def test_what_it_names_exists():
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (demo|test|tutorials|lint|bench)", text)):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"\]\(([^)]+)\)", text):
        assert (README.parent / path).exists(), path

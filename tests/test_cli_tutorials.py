"""`mfoc tutorials` lists, runs and copies: from a clone, and from the package as a wheel installs it."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from mfoc.cli import main, needs, tutorials
from mfoc.cli.notebook import cells, notebook

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
SMALL = """# %% [markdown]
# # A small one
#
# It shows **one** thing; `f` is it. And more.

# %%
import os
from pathlib import Path

figures = Path(os.environ["MFOC_FIGURES"])

# %%
(figures / "drawn.png").write_bytes(b"x")
print("smoke:", bool(os.environ.get("MFOC_SMOKE")))  # %% is no cell here
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A library that is installed with these tutorials in it."""
    package = tmp_path / "site" / "mfoc"
    (package / "tutorials").mkdir(parents=True)
    (package / "tutorials" / "01_small.py").write_text(SMALL)
    (package / "tutorials" / "02_smaller_still.py").write_text("# %%\nraise ValueError('a\\nb')\n")
    (package / "tutorials" / "12_other.py").write_text(SMALL)
    monkeypatch.setattr(tutorials, "__file__", str(package / "cli" / "tutorials.py"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize("arguments", [[], ["list"]])
def test_each_is_listed_with_its_title_and_purpose(arguments, capsys):
    assert main(["tutorials", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines[::2]] == [script.name[:2] for script in SCRIPTS]
    assert all(len(line) > 12 for line in lines)


def test_the_purpose_is_the_first_sentence(small, capsys):
    main(["tutorials"])
    assert capsys.readouterr().out.startswith("01  A small one\n      It shows one thing; f is it.\n")


@pytest.mark.parametrize("name", ["1", "01", "01_small", "01_small.py", "12", "Other"])
@pytest.mark.parametrize("smoke", [False, True])
def test_one_is_run_by_number_or_by_a_part_of_its_name(name, smoke, small, capsys):
    assert main(["tutorials", "run", name, "--out", "new/figs", *["--smoke"] * smoke]) == 0
    printed = capsys.readouterr().out
    assert f"smoke: {smoke}" in printed
    assert f"figures in {small / 'new' / 'figs'}: drawn.png" in printed
    assert "MFOC_FIGURES" not in os.environ


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("7", "no tutorial is '7'; expected a number, or a part of one of 01_small, 02_smaller_still, 12_other"),
        ("nothing", "no tutorial is"),
        ("", "no tutorial is"),
        ("small", "several tutorials have 'small' in their names; say which of 01_small, 02_smaller_still"),
        ("2", "02_smaller_still failed: ValueError: b"),
    ],
)
def test_what_cannot_be_run_is_one_line(name, told, small, capsys):
    assert main(["tutorials", "run", name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_what_one_imports_is_told_before_it_runs(small, monkeypatch, capsys):
    script = Path(tutorials.__file__).parents[1] / "tutorials" / "03_needy.py"
    script.write_text("print('it began')\nfrom pyro.infer import MCMC\nimport json, torch\n")
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name in ("pyro", "rich") else object())
    assert main(["tutorials", "run", "3"]) == 1
    printed = capsys.readouterr()
    assert "03_needy needs pyro: pip install 'pyro-ppl>=1.9,<2'" in printed.err
    assert "it began" not in printed.out


def test_a_copy_is_a_notebook_or_a_script_and_never_lies_over_what_is_there(small, capsys):
    assert main(["tutorials", "open", "1"]) == 0
    assert "01_small.ipynb" in capsys.readouterr().out
    read = json.loads((small / "01_small.ipynb").read_text())
    assert [cell["cell_type"] for cell in read["cells"]] == ["markdown", "code", "code"]
    assert main(["tutorials", "open", "1"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["tutorials", "open", "1", "--script", "--out", "deeper"]) == 0
    assert (small / "deeper" / "01_small.py").read_text() == SMALL


def test_an_installation_without_them_says_so(small, capsys):
    shutil.rmtree(Path(tutorials.__file__).parents[1] / "tutorials")
    assert main(["tutorials"]) == 1
    assert "lacks them" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_says_what_the_script_says(script):
    """Every line of code and of text is in it, in order; the code of each cell compiles."""
    text = script.read_text()
    read = json.loads(notebook(text))
    assert len(read["cells"]) == len(cells(text)) > 3
    assert len({cell["id"] for cell in read["cells"]}) == len(read["cells"])
    lines = []
    for cell in read["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            compile(source, script.name, "exec")
            assert cell["outputs"] == []
            lines += source.splitlines()
        else:
            lines += [f"# {line}".rstrip() for line in source.splitlines()]
    written = [line for line in text.splitlines() if line.strip() and not re.match(r"# %%", line)]
    assert [line for line in lines if line.strip()] == written

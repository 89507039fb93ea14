"""Every tutorial is a lesson of one form, and runs alone, in smoke mode, and draws."""

from __future__ import annotations

import ast
import io
import multiprocessing
import os
import re
import runpy
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
LONGEST = 300  # lines: what one reads at a sitting
# What most of them import, some seconds of it: a new process each has it from the one that they are forked from.
WARM = ["torch._dynamo", "torch.nn", "matplotlib.figure", "sklearn.datasets", "sklearn.model_selection", "mfoc.testing"]
WARM += ["paradigms.adversarial", "paradigms.bayesian", "paradigms.meta", "mfoc.plot"]
every = pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)


def cells(script: Path) -> list[tuple[bool, str]]:
    """The cells of a percent-format script: whether it is text, and what is in it (of text, without the hashes)."""
    found = []
    for cell in re.split(r"^# %%", script.read_text(), flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        text = "[markdown]" in head
        found.append((text, re.sub(r"^# ?", "", body, flags=re.MULTILINE) if text else body))
    return found


def run(script: Path, folder: Path) -> str:
    """What a tutorial prints when it runs as a script, in smoke mode, with its figures in the folder."""
    os.environ |= {"MFOC_SMOKE": "1", "MFOC_FIGURES": str(folder)}
    os.chdir(folder)
    with redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Of each tutorial that is asked for its folder and its run, a process of its own; as many at once as fit."""
    chosen = [item.callspec.params["script"] for item in request.session.items if "runs" in item.fixturenames]
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(os, "fork"):
        context.set_forkserver_preload(WARM)
    folders = {script: tmp_path_factory.mktemp(script.stem) for script in chosen}
    workers = 1 if "PYTEST_XDIST_WORKER" in os.environ else max(1, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        yield {script: (folder, pool.submit(run, script, folder)) for script, folder in folders.items()}
        pool.shutdown(cancel_futures=True)


def test_there_are_twelve():
    assert [script.name[:2] for script in TUTORIALS] == [f"{k:02d}" for k in range(1, 13)]


@every
def test_it_runs_alone_and_draws(script, runs):
    folder, future = runs[script]
    assert future.result(timeout=300).strip(), "the tutorial printed nothing"
    drawn = {path.name for path in folder.iterdir()}
    assert drawn, "the tutorial drew nothing"
    for name in drawn:  # nothing else is written, nor under the name of another lesson
        assert name.startswith(script.stem[:3]), name
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name


@every
def test_it_begins_with_its_title_its_purpose_and_how_long_it_runs(script):
    (text, opening), *_ = cells(script)
    title, purpose, *rest = opening.strip().split("\n\n")
    assert text
    assert re.fullmatch(r"# \S.*", title)
    said = " ".join(purpose.split())
    assert said.startswith(("After this lesson you can ", "After this page you can ")), said
    assert re.search(r"It runs for (a few seconds|(about|less than) ((half )?a minute|two minutes))\.", said), said
    assert rest
    assert rest[0].startswith("## The equation")
    assert "$$" in opening


@every
def test_it_ends_with_three_things_to_change(script):
    text, ending = cells(script)[-1]
    assert text
    _, _, exercises = ending.partition("## What to change\n")
    assert [int(number) for number in re.findall(r"^(\d)\. ", exercises, re.MULTILINE)] == [1, 2, 3]


@every
def test_it_is_short_and_takes_turns(script):
    assert len(script.read_text().splitlines()) <= LONGEST
    longest = max(len(body.strip().splitlines()) for text, body in cells(script) if not text)
    assert longest <= 60, f"a cell of {longest} lines: say something in between"


@every
def test_each_figure_is_saved_and_shown(script):
    shown = 0
    for text, body in cells(script):
        if text:
            continue
        saved = body.count("savefig(")
        last = ast.parse(body).body[-1]
        bare = isinstance(last, ast.Expr) and isinstance(last.value, ast.Name) and last.value.id == "figure"
        assert bare == bool(saved), f"a cell that saves a figure ends with it, and no other does:\n{body}"
        shown += bare
    assert shown, "a lesson shows a figure"

"""``import mfoc`` costs nothing, and what a name of it is does not depend on what was used before."""

import subprocess
import sys
from pathlib import Path

import pytest

import mfoc

ROOT = Path(__file__).parents[1]


def run(code, *flags, path=ROOT):
    """The last line that a new interpreter prints, of what it says or of its error."""
    command = [sys.executable, *flags, "-c", f"import sys; sys.path[:0] = {[str(path), str(ROOT)]!r}\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_a_name_is_the_same_whatever_was_used_before():
    """A module that is not exported, a function that has the name of a module of the past, and what a user has set."""
    found = run(
        """
import mfoc
mfoc.solvers.Gradient
mfoc.mean = "mine"
import mfoc.solve, mfoc.population
from mfoc import *
from mfoc import solve, solving
print(mfoc.mean, solve is solving.solve, mfoc.solve is solve, callable(population), Gradient is mfoc.solvers.Gradient)
""",
        "-W",
        "error",
    )
    assert found == "mine True True True True"


def test_threads_may_use_the_first_names_at_once():
    found = run("""
import mfoc, threading
sys.setswitchinterval(1e-6)
start, bad = threading.Barrier(8), []
def use(k):
    start.wait()
    for name in mfoc.__all__[k::8] + mfoc.__all__[::-1]:
        try:
            getattr(mfoc, name)
        except BaseException as error:
            bad.append(f"{name}: {error!r}")
threads = [threading.Thread(target=use, args=(k,)) for k in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(bad)
""")
    assert found == "[]"


@pytest.mark.parametrize("use", ["import mfoc; mfoc.Problem", "from mfoc import Problem", "from mfoc import tree"])
@pytest.mark.parametrize("kind", ["OSError", "AttributeError", "ImportError", "RuntimeError"])
def test_where_torch_is_broken_its_reason_is_said(tmp_path, use, kind):
    """And never that mfoc had no such name."""
    (tmp_path / "torch.py").write_text(f"raise {kind}('libc10.so is gone')")
    said = run(use, path=tmp_path)
    assert said.startswith("ImportError: ")
    assert "libc10.so is gone" in said


@pytest.mark.parametrize("name", ["not_a_name", "torch", "Probelm", "_public"])
def test_what_is_not_there_is_no_attribute(name):
    assert not hasattr(mfoc, name)
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from mfoc import {name}")

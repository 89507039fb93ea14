"""What is built: the wheel holds the library, its types and its tutorials; the core needs no extra."""

import configparser
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import mfoc

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = ["matplotlib", "rich", "sklearn", "scipy", "torchvision", "curvlinops", "pyro", "torchattacks", "learn2learn"]
EXTRAS += ["tqdm", "requests", "gym", "tensorboard"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, built without a network."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    """The wheel, unpacked as an installer does."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(folder)
    return folder


def test_the_wheel_holds_every_file_of_the_library_and_nothing_else(site):
    tops = {path.name for path in site.iterdir()}
    assert tops == {"mfoc", "paradigms", f"mfoc-{mfoc.__version__}.dist-info"}
    for package in ("mfoc", "paradigms"):
        written = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        shipped = {path.relative_to(site) for path in (site / package).rglob("*.py")}
        assert written <= shipped
        assert {path.parts[:2] for path in shipped - written} <= {("mfoc", "tutorials")}
        assert (site / package / "py.typed").exists()
    suffixes = {path.suffix for package in ("mfoc", "paradigms") for path in (site / package).rglob("*.*")}
    assert suffixes == {".py", ".typed"}  # no site, no pictures, no caches


def test_the_tutorials_ride_in_the_wheel(site):
    scripts = {path.name for path in (ROOT / "tutorials").glob("[0-9]*.py")}
    assert {path.name for path in (site / "mfoc" / "tutorials").iterdir()} == scripts


def test_the_wheel_says_what_it_is(site):
    (info,) = site.glob("*.dist-info")
    points = configparser.ConfigParser()
    points.read(info / "entry_points.txt")
    assert dict(points["console_scripts"]) == {"mfoc": "mfoc.cli:main"}
    assert dict(points["mfoc.paradigms"]) == {name: f"paradigms.{name}" for name in ("adversarial", "bayesian", "meta")}
    assert dict(points["mfoc.demos"]) == {"paradigms": "paradigms.demo:run"}
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    told = (info / "METADATA").read_text()
    assert f"Version: {mfoc.__version__}\n" in told
    assert f"version: {mfoc.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    for extra in PROJECT["project"]["optional-dependencies"]:
        assert f"Provides-Extra: {extra}\n" in told


def test_the_sdist_holds_what_builds_and_tests_it(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "tests/test_packaging.py"} <= names
    assert "tests/benchmarks/__main__.py" in names
    assert {f"tutorials/{path.name}" for path in (ROOT / "tutorials").glob("[0-9]*.py")} <= names
    assert not [name for name in names if name.startswith((".venv", "benchmarks/", "figures")) or "__pycache__" in name]


CORE = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
import torch, mfoc, paradigms.bayesian, paradigms.adversarial, paradigms.meta
problem = mfoc.Problem(
    lambda t, x, u, z: x + u, lambda x, z: (x**2).sum(-1), [torch.zeros(2)] * 3,
    running_cost=lambda t, x, u, z: (u**2).sum().expand(len(x)),
)
cloud = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
solution = mfoc.solve(problem, mfoc.EMSA(rho=1.0), cloud, steps=5)
print(mfoc.certify(problem, solution, cloud).verdict)
from mfoc.cli import main
assert main(["tutorials"]) == 0
print(mfoc.__file__)
"""


def test_the_core_runs_from_the_wheel_without_any_extra(site, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", CORE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(site))


DOWNSTREAM = """
import mfoc
from mfoc import Problem, hooks
from paradigms import load

solver: mfoc.Solver = mfoc.EMSA(rho=1.0)
reveal_type(mfoc.solve)
mfoc.not_a_name
wrong: int = mfoc.Box(0.0, 1.0)
"""


# As of an installed library, its own errors are not told; torch is not read, which takes most of a minute.
QUICK = """[mypy]
strict = True
ignore_missing_imports = True
[mypy-mfoc.*,paradigms.*]
follow_imports = silent
[mypy-torch.*,numpy.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_type_checker_of_a_user_sees_the_types(site, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "downstream.py").write_text(DOWNSTREAM)
    (tmp_path / "mypy.ini").write_text(QUICK)
    command = [sys.executable, "-m", "mypy", "downstream.py"]
    environment = {**os.environ, "MYPYPATH": str(site)}
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stdout
    assert 'downstream.py:7: note: Revealed type is "def [Controls' in told
    assert 'downstream.py:8: error: Module has no attribute "not_a_name"' in told
    assert 'downstream.py:9: error: Incompatible types in assignment (expression has type "Box"' in told
    assert "Found 2 errors in 1 file" in told

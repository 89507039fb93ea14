"""Law 11 of the design: imports go downward only, and importing mfoc is light."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import mfoc
import mfoc.public

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "mfoc").rglob("*.py"))
FORBIDDEN = {"paradigms", "pyro", "torchattacks", "learn2learn", "tests"}
OPTIONAL = {"matplotlib", "rich", "sklearn", "scipy", "torchvision", "curvlinops"}

# The layers from the ground up. A file imports only from layers below it, or from its own, without a circle.
LAYERS = [
    {"errors", "extras", "neighbours", "ranks"},
    {
        "deprecation",
        "tree",
        "tree_nodes",
        "checks",
        "seeding",
        "draws",
        "kept",
        "switches",
        "printing",
        "statistics",
        "identity",
        "holdings",
        "streams",
        "figures",
        "drawing",
        "collectives",
    },
    {"distributed", "derivatives", "particles", "bounds", "vectorisation"},
    {"law"},
    {"constraints"},
    {"problem", "validation", "populations"},
    {
        "segments",
        "blocks",
        "networks",
        "schemes",
        "pontryagin",
        "minimisers",
        "lq",
        "interacting",
        "policies",
        "heads",
        "compilation",
    },
    {"games", "frozen", "lagrangian", "second_order", "analysis", "solving"},
    {"solvers", "certificate", "optim", "hjb", "meanfield", "hooks"},
    {"formulation"},
    {"maximisers", "plot", "testing", "demo", "doctor"},
    {"cli", "public"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# The same for the paradigms, which import no other paradigm: files and folders from the ground up.
PARADIGM_LAYERS = {
    "adversarial": [
        {"certificate", "views", "drawing"},
        {"games", "attack"},
        {"interop"},
        {"verdicts"},
        {"evaluation"},
        {"plots"},
    ],
    "bayesian": [{"laws"}, {"pyro"}, {"density"}, {"vi", "samplers"}, {"predictive"}, {"metrics"}, {"plots"}],
    "meta": [
        {"columns", "layers", "losses", "task_laws"},
        {"chains"},
        {"stacked", "classification"},
        {"update_rules", "drawing"},
        {"loop"},
        {"formulations"},
        {"algorithms", "implicit", "learner", "evaluation"},
        {"interop"},
    ],
}


def name_of(path: Path) -> str:
    """`mfoc/solvers/msa.py` is solvers.msa."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported dotted name, and whether it is imported when the module is."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    typing_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }
    found = []
    for node in ast.walk(tree):
        at_import = id(node) not in inside | typing_only
        if isinstance(node, ast.Import):
            found += [(alias.name, at_import) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", at_import) for alias in node.names]
    return found


def library(name: str) -> str | None:
    """The top-level module of mfoc that a dotted name is in; None for others and for the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "mfoc" and len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downward(path):
    own = name_of(path).split(".")[0]
    if not own:  # the package's __init__ imports everything
        return
    assert own in LEVEL, f"{own} has no layer: add it to LAYERS"
    for name, _ in imports(path):
        used = library(name)
        if name.split(".")[0] == "mfoc" and used not in (own, "__version__"):  # a string, set first
            assert used in LEVEL, f"{path.name} imports {name}; expected a module that has a layer"
            assert LEVEL[used] <= LEVEL[own], f"{path.name} imports {name}, which lies above it"


def test_the_layers_in_the_documentation_are_these():
    """CONTRIBUTING.md joins some of them to a line."""
    lines = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    written = [re.findall(r"`(\w+)/?`", line) for line in lines if set(re.findall(r"\w+", line)) & LEVEL.keys()]
    written = [names for names in written if set(names) <= LEVEL.keys()]
    assert sorted(name for names in written for name in names) == sorted(LEVEL)
    levels = [{LEVEL[name] for name in names} for names in written]
    assert all(max(above) < min(below) for above, below in pairwise(levels)), "another order than that of LAYERS"


@pytest.mark.parametrize("paradigm", PARADIGM_LAYERS)
def test_imports_of_paradigms_go_downward(paradigm):
    level = {name: level for level, names in enumerate(PARADIGM_LAYERS[paradigm]) for name in names}
    for path in sorted((ROOT / "paradigms" / paradigm).rglob("*.py")):
        own = name_of(path).split(".")[1:2]
        for name, _ in imports(path) if own else []:
            package, *rest = name.split(".")
            if package != "paradigms" or rest[0] not in PARADIGM_LAYERS:
                continue
            assert rest[0] == paradigm, f"{path.name} imports {name}, another paradigm"
            assert own[0] in level, f"{own[0]} has no layer: add it to PARADIGM_LAYERS"
            assert level[rest[1]] <= level[own[0]], f"{path.name} imports {name}, which lies above it"


@pytest.mark.parametrize("package", ["mfoc", "paradigms"])
def test_no_import_cycles(package):
    """Among the files; a package's __init__ stands for the files it collects."""
    files = {f"{package}.{name_of(path)}".rstrip("."): path for path in (ROOT / package).rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for own, path in files.items():
        if own == package:
            continue
        names = [name for name, at_import in imports(path) if at_import]
        used = {known for name in names for known in files if name == known or name.rpartition(".")[0] == known}
        graph[own] = used - {own, package}
    done: set[str] = set()
    while ready := {name for name, used in graph.items() if name not in done and used & graph.keys() <= done}:
        done |= ready
    assert done == graph.keys(), f"a cycle among {sorted(graph.keys() - done)}"


def test_no_module_hides_behind_a_function():
    """`mfoc.solve` is the function and nothing else: no module has the name of what its package exports."""
    for package in ("mfoc", "paradigms", "paradigms.adversarial", "paradigms.bayesian", "paradigms.meta"):
        folder = ROOT.joinpath(*package.split("."))
        modules = {path.stem for path in folder.iterdir()} - {"__init__", "__pycache__"}
        exported = __import__(package, fromlist=["__all__"])
        hidden = [name for name in modules & set(exported.__all__) if not inspect.ismodule(getattr(exported, name))]
        assert not hidden, f"{package}: {hidden}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_forbidden_is_imported(path):
    for name, at_import in imports(path):
        top = name.split(".")[0]
        assert top not in FORBIDDEN, f"{path.name} imports {name}"
        if at_import:
            assert top not in OPTIONAL, f"{path.name} imports {name} when it is imported; do it where it is used"


def test_paradigms_import_only_public_names():
    for path in (ROOT / "paradigms").rglob("*.py"):
        for name, _ in imports(path):
            private = [part for part in name.split(".") if part.startswith("_") and part != "__future__"]
            assert not (name.startswith("mfoc") and private), f"{path.name} imports {name}"


def test_what_mfoc_exports_is_what_its_public_module_imports():
    assert sorted(mfoc.__all__) == sorted(name for name in vars(mfoc.public) if not name.startswith("_"))
    assert {name for name in mfoc.__all__ if inspect.ismodule(getattr(mfoc, name))} == mfoc._MODULES


@pytest.mark.parametrize("used", ["mfoc", "mfoc.solve"])
def test_importing_mfoc_is_light(used):
    """Without torch, even, until a name is used."""
    heavy = sorted(OPTIONAL | FORBIDDEN | ({"torch", "numpy"} if used == "mfoc" else set()))
    code = f"import sys, mfoc; {used}; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_print_and_no_bare_except(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            allowed = "cli" in path.parts  # standard output is the command's product
            assert allowed or node.func.id != "print", f"{path.name}:{node.lineno} prints"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path.name}:{node.lineno} bare except"


def test_public_names_exist():
    assert sorted(mfoc.__all__) == sorted(set(mfoc.__all__))
    assert all(hasattr(mfoc, name) for name in mfoc.__all__)

"""Law 9 of the design: imports go downward only, and importing mfoc is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "mfoc").rglob("*.py"))
FORBIDDEN = {"paradigms", "pyro", "torchattacks", "learn2learn", "tests"}
OPTIONAL = {"matplotlib", "rich", "sklearn", "scipy", "torchvision"}

# The layers from the ground up. A module imports only from layers below it, or from its own.
LAYERS = [
    {"_errors"},
    {"_tree", "_distributed", "checks"},
    {"problem"},
    {"schemes", "population", "pontryagin", "_staging"},
    {"networks", "inner", "_blocks", "_riccati", "game"},
    {"_sweeps", "maximisers"},
    {"solve"},
    {"solvers", "lq", "hjb", "optim", "certificate"},
    {"hooks", "plot", "testing", "analysis"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}  # completed below


def name_of(path: Path) -> str:
    """`mfoc/solvers/msa.py` is solvers.msa."""
    parts = path.relative_to(ROOT / "mfoc").with_suffix("").parts
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


def level_of(name: str) -> int:
    """The layer of a module; a private helper that is not listed lies as low as its own imports allow."""
    if name not in LEVEL and name.startswith("_") and (ROOT / "mfoc" / f"{name}.py").exists():
        used = {library(used) for used, _ in imports(ROOT / "mfoc" / f"{name}.py")} - {None, name}
        LEVEL[name] = max(map(level_of, used), default=0)
    assert name in LEVEL, f"{name} has no layer: add it to LAYERS"
    return LEVEL[name]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downward(path):
    own = name_of(path).split(".")[0]
    if not own:  # the package's __init__ imports everything
        return
    for name, _ in imports(path):
        used = library(name)
        if name.split(".")[0] == "mfoc" and used != own:
            assert used is not None, f"{path.name} imports mfoc itself"
            assert level_of(used) <= level_of(own), f"{path.name} imports {name}, which lies above it"


def test_no_import_cycles():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        own = name_of(path)
        if own and own != "solvers":
            graph[own] = {
                known
                for name, at_import in imports(path)
                if at_import
                for known in map(name_of, FILES)
                if known and known != own and (name == f"mfoc.{known}" or name.startswith(f"mfoc.{known}."))
            }
    done: set[str] = set()
    while ready := {name for name, used in graph.items() if name not in done and used & graph.keys() <= done}:
        done |= ready
    assert done == graph.keys(), f"a cycle among {sorted(graph.keys() - done)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_forbidden_is_imported(path):
    for name, at_import in imports(path):
        top = name.split(".")[0]
        assert top not in FORBIDDEN, f"{path.name} imports {name}"
        if at_import:
            assert top not in OPTIONAL, f"{path.name} imports {name} when it is imported; do it where it is used"


def test_analysis_never_imports_solvers():
    for path in (ROOT / "mfoc" / "analysis").rglob("*.py"):
        assert all(library(name) != "solvers" for name, _ in imports(path))


def test_paradigms_import_only_public_names():
    for path in (ROOT / "paradigms").rglob("*.py"):
        for name, _ in imports(path):
            private = [part for part in name.split(".") if part.startswith("_") and part != "__future__"]
            assert not (name.startswith("mfoc") and private), f"{path.name} imports {name}"


def test_importing_mfoc_is_light():
    heavy = sorted(OPTIONAL | FORBIDDEN)
    code = f"import sys, mfoc; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_print_and_no_bare_except(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            allowed = path.name == "cli.py"  # standard output is the command's product
            assert allowed or node.func.id != "print", f"{path.name}:{node.lineno} prints"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path.name}:{node.lineno} bare except"


def test_public_names_exist():
    import mfoc

    assert sorted(mfoc.__all__) == sorted(set(mfoc.__all__))
    assert all(hasattr(mfoc, name) for name in mfoc.__all__)


def test_every_error_is_also_a_built_in_one():
    import mfoc

    for error, builtin in (
        (mfoc.InvalidValue, ValueError),
        (mfoc.InvalidType, TypeError),
        (mfoc.NonFiniteError, ArithmeticError),
        (mfoc.MissingExtra, ImportError),
    ):
        assert issubclass(error, mfoc.MfocError)
        assert issubclass(error, builtin)

"""A second package named `paradigms` is refused with its place and a cure: one of two is always hidden."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mfoc import doctor, errors, neighbours
from mfoc.cli import main

ROOT = Path(__file__).parents[1]


def foreign(folder, kind="package"):
    """Somebody else's `paradigms`, as a package or a module."""
    file = folder / ("paradigms/__init__.py" if kind == "package" else "paradigms.py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("from mfoc import solve\n__all__ = ['train']\n")
    return file


def run(code, *path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["package", "module"])
def test_ours_refuses_to_be_imported_beside_another(kind, tmp_path):
    """Ours comes first on sys.path, so that theirs is hidden."""
    foreign(tmp_path / "theirs", kind)
    done = run("import paradigms", ROOT, tmp_path / "theirs")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mfoc.errors.NameClash: another package is named 'paradigms'")
    assert str(tmp_path / "theirs" / "paradigms") in last
    assert "Rename it" in last


@pytest.mark.parametrize("kind", ["package", "module"])
def test_where_theirs_hides_ours_the_command_and_the_doctor_say_so(kind, tmp_path, monkeypatch, capsys):
    file = foreign(tmp_path, kind)
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = (each for each in doctor.examine({}.get) if each.name == "paradigms")
    assert found.bad
    assert str(file.parent if kind == "package" else file) in found.said
    assert main(["paradigms"]) == 1
    assert "does not load: NameClash: another package is named 'paradigms'" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["a folder of files", "a copy of ours", "nothing"])
def test_what_hides_nothing_is_no_stranger(kind, tmp_path, monkeypatch):
    """A folder that is no package comes after every package; a clone beside an installation is the same library."""
    if kind == "a folder of files":
        (tmp_path / "paradigms").mkdir()
        (tmp_path / "paradigms" / "notes.py").touch()
    elif kind == "a copy of ours":
        (tmp_path / "paradigms").mkdir()
        (tmp_path / "paradigms" / "__init__.py").write_text((ROOT / "paradigms" / "__init__.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    assert neighbours.strangers() == []
    neighbours.refuse_strangers()


def test_another_distribution_that_brings_the_name_is_found(tmp_path, monkeypatch):
    """Its files may lie in the folder of ours, where sys.path does not tell."""
    for name, brought in (("their-paradigms", "paradigms/__init__.py"), ("other", "other/paradigms/__init__.py")):
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{brought},sha256=0,9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert neighbours.sharing() == ["their-paradigms"]
    (found,) = (each for each in doctor.examine({}.get) if each.name == "paradigms")
    assert found.bad
    assert "their-paradigms" in found.said
    assert "pip uninstall their-paradigms" in found.cure


def test_the_error_is_an_import_error():
    assert issubclass(errors.NameClash, ImportError | errors.MfocError)


def test_each_paradigm_is_listed_with_what_it_offers(capsys):
    pytest.importorskip("torch")
    if not metadata.entry_points(group="mfoc.paradigms"):
        pytest.skip("mfoc is not installed: there are no entry points")
    assert main(["paradigms"]) == 0
    told = capsys.readouterr().out
    assert "meta  (paradigms.meta, of mfoc" in told
    assert "maml" in told


def test_a_paradigm_that_does_not_load_is_listed_with_the_reason(monkeypatch, capsys):
    from mfoc.cli import paradigms

    point = metadata.EntryPoint("theirs", "not_there_at_all", "mfoc.paradigms")
    monkeypatch.setattr(paradigms, "entry_points", lambda group: [point])
    assert main(["paradigms"]) == 1
    assert "does not load: ModuleNotFoundError: No module named 'not_there_at_all'" in capsys.readouterr().out

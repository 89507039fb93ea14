"""`mfoc doctor` says what does not fit together and what is not safe, and never fails itself."""

import json
import re
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from mfoc import doctor
from mfoc.cli import main
from mfoc.doctor import core, packages, vision
from mfoc.doctor.versions import below
from mfoc.extras import EXTRAS

SAFE = {"torch": "2.9.1", "numpy": "2.1.0", "requests": "2.32.5", "urllib3": "2.6.3", "idna": "3.11"}
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


def looked_at(**versions):
    """What is found where these are installed, beside the core, and nothing else."""
    there = SAFE | versions
    return doctor.examine(there.get)


def bad(findings):
    return {finding.name: finding.state.value for finding in findings if finding.bad}


def test_a_sound_installation_has_nothing_to_mend():
    found = looked_at()
    assert bad(found) == {}
    assert doctor.report(found).endswith("all is well")


@pytest.mark.parametrize(
    ("package", "version", "told"),
    [
        ("requests", "2.25.1", "CVE"),
        ("urllib3", "1.26.20", "CVE"),
        ("idna", "2.10", "CVE"),
        ("certifi", "2023.7.22", "CVE"),
        ("torch", "2.5.1+cu121", "weights_only"),
        ("requests", "2.32.4rc1.dev0", None),  # what is before the first safe release is not told from it
        ("urllib3", "2.10.0", None),  # ten is after six
        ("idna", "3.7", None),
    ],
)
def test_versions_that_are_not_safe(package, version, told):
    found = looked_at(**{package: version})
    assert bad(found) == ({package: "unsafe"} if told else {})
    if told:
        (fault,) = (finding for finding in found if finding.bad)
        assert told in fault.said
        assert version in fault.said
        assert fault.cure.startswith(f"pip install --upgrade '{package}>=")
        assert doctor.report(found).endswith(f"to mend: {package}")


@pytest.mark.parametrize(
    ("package", "version"), [("torch", "2.3.1"), ("torch", "3.0"), ("numpy", "1.25.2"), ("numpy", "3.0.0")]
)
def test_a_core_that_the_library_does_not_know_is_broken(package, version):
    found = looked_at(**{package: version})
    assert any(finding.name == package and finding.state == "broken" for finding in found)


@pytest.mark.parametrize("peer", packages.PEERS, ids=lambda peer: peer.package)
def test_each_optional_package_is_missing_known_or_of_another_version(peer):
    def of(version):
        found = looked_at(**({peer.package: version} if version else {}))
        return next(finding for finding in found if finding.name == peer.package)

    assert of(None).state == "missing"
    assert peer.extra in of(None).said
    assert of(None).cure == ""  # one command installs all that is missing
    assert of(peer.least).state == "ok"
    assert of(peer.below).state == "note"


def test_the_versions_that_it_knows_are_those_of_the_project_file():
    project = PROJECT["project"]
    lines = [line for extra in project["optional-dependencies"].values() for line in extra]
    lines += PROJECT["dependency-groups"]["torchattacks"]
    bounds = {line.split(">=")[0]: line.split(">=")[1].split(",<") for line in lines if ">=" in line}
    for peer in packages.PEERS:
        if peer.package != "learn2learn":
            assert bounds[peer.package] == [peer.least, peer.below]
        assert peer.extra in project["optional-dependencies"]
    assert PROJECT["dependency-groups"]["learn2learn"] == ["learn2learn==0.2.0"]


def test_the_commands_that_install_bring_what_the_extras_bring():
    written = PROJECT["project"]["optional-dependencies"]
    assert {name: list(each) for name, each in EXTRAS.items()} == {k: v for k, v in written.items() if k != "all"}
    assert set(written["all"][0].removeprefix("mfoc[").removesuffix("]").split(",")) == set(EXTRAS)


def test_one_command_installs_all_that_is_missing_and_keeps_torch():
    found = looked_at(torch="2.9.1+cpu")
    command = doctor.install_missing(found, (SAFE | {"torch": "2.9.1+cpu"}).get)
    assert command.startswith("pip install 'torch==2.9.1' ")
    assert all(f"'{each}'" in command for extra in EXTRAS.values() for each in extra)
    assert command.count("pip install") == 3  # torchattacks and learn2learn come alone
    assert "mfoc" not in command  # which no index serves
    assert doctor.report(found, install=command).splitlines()[-2].strip() == command
    assert json.loads(doctor.report(found, as_json=True, install=command))["install"] == command


def test_where_nothing_is_missing_nothing_is_to_be_installed():
    there = {peer.package: peer.least for peer in packages.PEERS}
    found = looked_at(**there)
    assert doctor.install_missing(found, (SAFE | there).get) == ""
    alone = doctor.install_missing(looked_at(**(there | {"rich": None})))
    assert alone == "pip install 'matplotlib>=3.8,<4' 'rich>=13,<16'"


def test_it_works_where_torch_does_not(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 1
    assert "broken  torch " in capsys.readouterr().out


def test_each_thing_is_told_once_and_each_extra_is_looked_at():
    names = [finding.name for finding in doctor.examine({}.get)]
    assert len(names) == len(set(names))
    assert {peer.extra for peer in packages.PEERS} == set(EXTRAS)


def test_an_environment_without_pip_is_told_of(monkeypatch):
    """A bare `pip install` would be of another environment, without a word."""
    monkeypatch.setattr(core, "find_spec", lambda name: None)
    (told,) = core.installer()
    assert (told.state, told.cure) == ("note", f"{sys.executable} -m ensurepip")


def test_no_extra_brings_a_package_whose_pins_are_not_safe():
    """A plain pip keeps every pin that it meets: torchattacks alone would bring requests 2.25.1."""
    lines = [line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra]
    names = {re.split(r"[<>=\[]", line)[0] for line in lines}
    assert names.isdisjoint({"torchattacks", "learn2learn", "qpth", "gsutil"})
    floors = dict(line.split(",")[0].split(">=") for line in lines if ">=" in line)
    for package, safe, _, _ in packages.UNSAFE:
        assert package not in floors or not below(floors[package], safe)


@pytest.mark.parametrize(
    ("torch_version", "torchvision", "requires", "told"),
    [
        ("2.8.0+cu126", "0.23.0+cu126", ["numpy", "torch==2.8.0"], ""),
        ("2.8.0+cpu", "0.23.0+cu126", ["torch==2.8.0"], "torch is a build for cpu, torchvision for cu126"),
        ("2.9.0", "0.23.0", ["torch==2.8.0"], "is for torch == 2.8.0, and torch is 2.9.0"),
        ("2.7.1", "0.23.0", ["torch (==2.8.0)"], "is for torch == 2.8.0, and torch is 2.7.1"),
        ("2.13.0", "0.29.2", ["torch (>=2.14.0)"], "is for torch >= 2.14.0, and torch is 2.13.0"),
        ("2.15.0", "0.29.2", ["torch (>=2.14.0)"], ""),
        ("2.15.0", "0.29.2", [], ""),
    ],
)
def test_torchvision_has_to_fit_torch(torch_version, torchvision, requires, told):
    assert told in vision.misfit(torch_version, torchvision, requires)
    assert bool(told) == bool(vision.misfit(torch_version, torchvision, requires))


def test_builds_that_do_not_fit_are_broken_and_told_how_to_mend():
    (fault,) = (each for each in looked_at(torch="2.8.0+cpu", torchvision="0.23.0+cu126") if each.bad)
    assert fault.name == "torch and torchvision"
    assert "'torch==2.8.0' torchvision" in fault.cure


def test_operators_that_do_not_load_are_found(monkeypatch):
    pytest.importorskip("torchvision")

    def fails(path):
        raise OSError("undefined symbol: _ZN3c10")

    assert vision._operators_missing() == ""
    monkeypatch.setattr(torch.ops, "load_library", fails)
    assert "undefined symbol" in vision._operators_missing()


@pytest.mark.parametrize("probe", ["python_itself", "torch_works", "numpy_works", "devices", "backends", "processes"])
def test_a_probe_that_fails_is_a_finding(probe, monkeypatch):
    def fails(*known):
        raise OSError("libcudart.so: cannot open shared object file")
        yield

    monkeypatch.setattr(core, probe, fails)
    found = looked_at()
    (told,) = (finding for finding in found if "libcudart" in finding.said)
    assert told.bad == (probe in ("python_itself", "torch_works", "numpy_works"))
    assert len(found) > 10  # the others went on


def test_metadata_that_cannot_be_read_does_not_stop_it():
    def unreadable(package):
        raise ValueError("metadata is damaged")

    found = doctor.examine(unreadable)
    assert {"python", "compiler", "cuda"} & {finding.name for finding in found}
    assert any("metadata is damaged" in finding.said for finding in found)


@pytest.mark.parametrize("faulty", [False, True])
def test_the_command(faulty, capsys, monkeypatch):
    version = "1.26.20" if faulty else "2.6.3"
    monkeypatch.setattr(doctor, "installed", (SAFE | {"urllib3": version}).get)
    assert main(["doctor"]) == int(faulty)
    printed = capsys.readouterr().out
    assert printed.endswith("to mend: urllib3\n" if faulty else "all is well\n")
    assert main(["doctor", "--json"]) == int(faulty)
    read = json.loads(capsys.readouterr().out)
    assert read["ok"] is not faulty
    assert {"name", "state", "said", "cure"} == set(read["findings"][0])


def test_it_is_quick_here():
    began = time.thread_time()
    doctor.examine()
    assert time.thread_time() - began < 2

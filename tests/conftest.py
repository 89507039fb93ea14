"""One thread a process: the tests' tensors are small, and several processes may run at once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.devices import paper

torch.set_num_threads(1)
paper.register()
settings.register_profile("mfoc", deadline=None, derandomize=True)  # no test is about time, and each is seeded
settings.load_profile("mfoc")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device cuda`` runs the doors of every architecture there: ``python -m pytest tests/doors --device cuda``."""
    parser.addoption("--device", default="cpu", help="where the networks of tests/doors are: cpu, cuda, paper ...")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the tables that tests leave by ``record_property("table", text)``, from other processes, too."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    tables = [text for report in reports for name, text in getattr(report, "user_properties", []) if name == "table"]
    for text in sorted(tables):
        terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device that is asked for; its tests are skipped where this machine has none."""
    found = str(request.config.getoption("--device"))
    if found == "paper":
        if not paper.AVAILABLE:
            pytest.skip("a device on paper needs torch >= 2.10")
        with paper.on_paper():
            yield found
        return
    kind = torch.device(found).type
    if kind != "cpu" and not getattr(torch, kind).is_available():
        pytest.skip(f"this machine has no {found}")
    yield found


@pytest.fixture(autouse=True)
def _validation() -> Iterator[None]:
    """``torch.compile`` switches the validation of distributions off for the whole process."""
    law: Any = torch.distributions.Distribution
    before = law._validate_args
    yield
    law.set_default_validate_args(before)


@pytest.fixture
def double() -> Iterator[None]:
    """float64 by default, an empty parameter store of Pyro, and a known state of torch's generator."""
    pyro = pytest.importorskip("pyro")
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()

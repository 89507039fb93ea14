"""One thread a process: the tests' tensors are small, and several processes may run at once."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("mfoc", deadline=None, derandomize=True)  # no test is about time, and each is seeded
settings.load_profile("mfoc")


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

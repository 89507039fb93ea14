"""What is asked of every device; ``CUDA`` is the parameter of a test that runs on a GPU where there is one."""

import pytest
import torch

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")],
)

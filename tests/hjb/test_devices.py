"""Value functions are where the controls of their problem are, in their dtype."""

import pytest
import torch

import mfoc
from mfoc import hjb
from tests.devices import CUDA


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["grid", "noise", "bounds", "fit"])
def test_everything_stays_there(how, dtype, device):
    problem = mfoc.continuous(
        lambda t, x, u, z: u.expand_as(x),
        lambda x, z: x.square().sum(1),
        [torch.zeros(1, dtype=dtype, device=device)] * 3,
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
        diffusion=0.1 if how == "noise" else None,
        bounds=mfoc.Box(-0.5, 0.5) if how == "bounds" else None,
    )
    x = torch.linspace(-1, 1, 12, dtype=dtype, device=device)[:, None]
    value = hjb.fit(problem, x, steps=5) if how == "fit" else hjb.solve(problem, [torch.linspace(-2, 2, 9)])
    found = [value(0, x), value.gradient(0, x), value.policy(0, x)]
    verified = hjb.verify(problem, value, x)
    found += [part for part in (verified.cost, verified.gradient_error) if part is not None]
    assert all((part.device.type, part.dtype) == (device, dtype) for part in found)
    assert all(bool(part.isfinite().all()) for part in found)

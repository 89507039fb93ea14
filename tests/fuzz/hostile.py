"""Arguments that do not fit: of the wrong type, of the wrong size, of another kind than the good one."""

from __future__ import annotations

import datetime
import decimal
import fractions
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mfoc
from tests.fuzz import good as makers

Make = Callable[[], Any]


def _returning(value: Any) -> Any:
    def hostile(*args: Any, **kwargs: Any) -> Any:
        return value

    return hostile


def _generator() -> Iterator[int]:
    yield 1


class Hollow:
    """A class that takes anything, in place of a function or of an instance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.kept = args, kwargs


class Yes:
    """Has every attribute, and each says yes to everything: what asks by ``hasattr`` takes it for anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _returning(self)


async def _later(*args: Any) -> Tensor:
    return torch.ones(6)


def _of_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


PLAIN: dict[str, Make] = {
    "None": lambda: None,
    "a word": lambda: "abc",
    "an empty word": lambda: "",
    "bytes": lambda: b"abc",
    "True": lambda: True,
    "False": lambda: False,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "1": lambda: 1,
    "0.0": lambda: 0.0,
    "-0.5": lambda: -0.5,
    "1.5": lambda: 1.5,
    "2.0": lambda: 2.0,
    "2**63": lambda: 2**63,
    "-2**63": lambda: -(2**63),
    "10**400": lambda: 10**400,
    "1e30": lambda: 1e30,
    "1e300": lambda: 1e300,
    "-1e300": lambda: -1e300,
    "1e-300": lambda: 1e-300,
    "a complex number": lambda: 1j,
    "a fraction": lambda: fractions.Fraction(1, 2),
    "a decimal": lambda: decimal.Decimal("0.5"),
    "a date": lambda: datetime.date(2020, 1, 1),
    "a path": lambda: Path("x"),
    "[]": lambda: [],
    "()": lambda: (),
    "{}": lambda: {},
    "a set": lambda: {1},
    "a range": lambda: range(3),
    "a slice": lambda: slice(0, 2),
    "[None]": lambda: [None],
    "[NaN]": lambda: [float("nan")],
    "(1, 'a')": lambda: (1, "a"),
    "nested lists": lambda: [[1.0, 2.0], [3.0]],
    "a dict": lambda: {"a": 1},
    "a dict by number": lambda: {1: torch.ones(2)},
    "an object": object,
    "a class": lambda: Hollow,
    "a generator": _generator,
    "a dtype": lambda: torch.float32,
    "a device": lambda: torch.device("cpu"),
    "a numpy NaN": lambda: np.float32("nan"),
    "a numpy integer": lambda: np.int64(-1),
    "an array": lambda: np.ones((8, 3), dtype=np.float32),
    "an array of words": lambda: np.array(["a", "b"]),
    "an array of objects": lambda: np.array([None, {}], dtype=object),
    "an array backwards": lambda: np.ones((8, 3), dtype=np.float32)[::-1],
    "a big-endian array": lambda: np.ones((8, 3), dtype=">f4"),
    "an empty tensor": lambda: torch.ones(0),
    "no rows": lambda: torch.ones(0, 3),
    "a 0-d tensor": lambda: torch.tensor(1.0),
    "a tensor": lambda: torch.ones(2, 3, 4),
    "a leaf": lambda: torch.ones(2, requires_grad=True),
    "a meta tensor": lambda: torch.ones(8, 3, device="meta"),
    "a sparse tensor": lambda: torch.eye(3).to_sparse(),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "a quantised tensor": lambda: torch.quantize_per_tensor(torch.ones(8, 3), 0.1, 0, torch.qint8),
    "a module": lambda: nn.Linear(2, 2),
    "a bare module": lambda: nn.Module(),
    "a function of nothing": lambda: lambda: None,
    "a function of None": lambda: _returning(None),
    "a function of words": lambda: _returning("abc"),
    "a function of NaN": lambda: _returning(float("nan")),
    "a function of a NaN tensor": lambda: _returning(torch.full((6,), torch.nan)),
    "a function of a shape": lambda: _returning(torch.ones(5, 4, 3)),
    "a problem": lambda: makers.problem(),
    "a cloud": lambda: makers.cloud(),
    "a solver": lambda: makers.solver(),
    "what says yes": Yes,
    "a coroutine function": lambda: _later,
    "'True'": lambda: "True",
    "-7": lambda: -7,
    "2**31": lambda: 2**31,
    "a numpy float": lambda: np.float64(0.5),
    "a numpy flag": lambda: np.bool_(True),
    "an empty array": lambda: np.ones((0, 3), dtype=np.float32),
    "a 0-d array": lambda: np.array(1.0),
    "a tensor of no width": lambda: torch.ones(8, 0),
    "an inference tensor": lambda: _of_inference(torch.ones(8, 3)),
    "an MKL-DNN tensor": lambda: torch.ones(8, 3).to_mkldnn(),
    "a CSR tensor": lambda: torch.eye(3).to_sparse_csr(),
    "a conjugate": lambda: torch.ones(8, 3, dtype=torch.complex64).conj(),
    "a lazy module": lambda: nn.LazyLinear(2),
    "a loader": lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 3)), batch_size=4),
}

OF_TENSOR: dict[str, Callable[[Tensor], Any]] = {
    "of NaN": lambda x: torch.full_like(x, torch.nan),
    "with a NaN": lambda x: _with(x, float("nan")),
    "with an inf": lambda x: _with(x, float("inf")),
    "of 1e30": lambda x: torch.full_like(x, 1e30),
    "negated": lambda x: -x - 1,
    "of zeros": lambda x: torch.zeros_like(x),
    "in half": lambda x: x.half(),
    "in bfloat16": lambda x: x.bfloat16(),
    "in the other float": lambda x: x.double() if x.dtype == torch.float32 else x.float(),
    "in int": lambda x: x.long(),
    "in bool": lambda x: x.bool(),
    "in complex": lambda x: x.to(torch.complex64),
    "of one entry": lambda x: x.reshape(-1)[:1],
    "without rows": lambda x: x[:0],
    "of one row": lambda x: x[:1],
    "a row short": lambda x: x[:-1],
    "with an axis more": lambda x: x.unsqueeze(0),
    "summed": lambda x: x.sum(),
    "on meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "as a leaf": lambda x: x.detach().clone().requires_grad_(),
    "as an array": lambda x: x.numpy(),
    "as a big-endian array": lambda x: x.numpy().astype(x.numpy().dtype.newbyteorder(">")),
    "as a list": lambda x: x.tolist(),
    "of inference": lambda x: _of_inference(x),
    "as float16 array": lambda x: x.numpy().astype(np.float16),
    "without width": lambda x: x[..., :0] if x.dim() else x.reshape(1)[:0],
    "of rows in one place": lambda x: x[:1].expand(x.shape),
    "backwards": lambda x: x.flip(0),
    "transposed": lambda x: x.mT.contiguous() if x.dim() > 1 else x.flip(0),
}


def _with(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x.reshape(-1)[-1:] = value
    return x


def hostile(make: Make | None) -> dict[str, Make]:
    """What may stand in the place of a good argument, by name. Each maker makes a new one."""
    found = dict(PLAIN)
    value = make() if make is not None else None
    if make is None:
        return found
    first = _first(value)
    if first is not None:
        for name, change in OF_TENSOR.items():
            real = first.is_floating_point() or not any(part in name for part in ("NaN", "inf", "1e30", "negated"))
            if real and (first.dim() or "row" not in name):
                found[f"a tensor {name}"] = lambda change=change: _changed(make(), change)
    if isinstance(value, list | tuple):
        found["one entry less"] = lambda: make()[:-1]
        found["one entry more"] = lambda: [*make(), make()[-1]]
    return found


def _first(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, mfoc.Particles):
        return _first(value.state)
    if isinstance(value, list | tuple) and value:
        return _first(value[0])
    return None


def _changed(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The value with its first tensor changed."""
    if isinstance(value, Tensor):
        return change(value.detach())
    if isinstance(value, mfoc.Particles):
        return (_changed(value.state, change), value.data)
    changed = list(value)
    changed[0] = _changed(value[0], change)
    return type(value)(changed) if type(value) in (list, tuple) else changed

"""Calls a door and says what came of it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import math
import random as stdlib_random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mfoc
from tests.fuzz.exclusions import DOCUMENTED

SECONDS = 4.0  # of the processor, for one call: another's load on the machine is no hang
USERS = (
    "tests/fuzz/good.py",
    "tests/fuzz/hostile.py",
    "torch/nn/modules/module.py",
)  # functions here are users': their errors are their own
PATIENCE = 60.0  # on the clock


class Hang(BaseException):
    """The call took too long."""


@dataclass(frozen=True)
class Outcome:
    """What came of one call.

    Attributes:
        kind: "result", "refused", "raw", "silent", "hang", "unnamed", "mutated" or "state".
        note: of what is wrong.
    """

    kind: str
    note: str = ""

    @property
    def fine(self) -> bool:
        return self.kind in ("result", "refused")


def judged(
    call: Callable[[], Any], arguments: Mapping[str, Any], *, mutable: bool, random: bool, unknown: bool
) -> Outcome:
    """Calls, within ``SECONDS``, and judges.

    Args:
        call: the door with its arguments.
        arguments: these, by name.
        mutable: whether it may change them, as optimisers and functions that end in an underscore do.
        random: whether it may draw from the process's generators.
        unknown: whether its result may say by NaN or infinity what is not known.
    """
    before, process = _marks(arguments), _process()
    outcome = _called(call)
    if unknown and outcome.kind == "silent":
        outcome = Outcome("result")
    left = _differences(process, _process())
    if left:
        _restore(process)
    if left and not (random and all("generator" in name for name in left)):
        return Outcome("state", f"changed {', '.join(left)}")
    if outcome.fine and not mutable:
        after = _marks(arguments)
        changed = [name for name in before if not _same(before[name], after[name])]
        if changed:
            return Outcome("mutated", f"changed {', '.join(changed)}")
    return outcome


def _called(call: Callable[[], Any]) -> Outcome:
    try:
        with _limited(SECONDS), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                result = call()
                # A lazy answer is an answer once it is looked at.
                if isinstance(result, Iterator):
                    result = next(iter(result), None)
    except Hang:
        return Outcome("hang", f"took more than {SECONDS} s")
    except mfoc.MfocError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" not in frame.filename]
        ours = [frame for frame in where if "/mfoc/" in frame.filename or "/paradigms/" in frame.filename]
        if innermost(error).endswith(USERS):
            return Outcome("refused", f"a function of the user's own: {error}, of state, controls and the like")
        frame = (ours or where or [None])[-1]
        at = f"{frame.filename.rpartition('/wt/')[2]}:{frame.lineno}" if frame else "the call itself"
        return Outcome(
            "raw", f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''} @ {at}"
        )
    bad = next(_non_finite(result), None)
    return Outcome("result") if bad is None else Outcome("silent", bad)


def innermost(error: Exception) -> str:
    """The file in which an error was raised."""
    return traceback.extract_tb(error.__traceback__)[-1].filename


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    clocks = (signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, PATIENCE)
    former = [signal.signal(number, stop) for _, number, _ in clocks]
    for timer, _, limit in clocks:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(clocks, former, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _non_finite(value: Any, where: str = "result", depth: int = 0) -> Iterator[str]:
    """The places of a result that hold NaN or infinity."""
    if depth > 4:
        return
    if isinstance(value, nn.parameter.UninitializedParameter):
        return
    if isinstance(value, Tensor):
        dense = not (value.is_nested or value.is_quantized or value.is_meta) and value.layout is torch.strided
        if dense and value.is_floating_point() and not bool(value.isfinite().all()):
            yield where
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fc" and not np.isfinite(value).all():
            yield where
    elif isinstance(value, bool | int | str):
        return
    elif isinstance(value, float | complex):
        if not math.isfinite(abs(value)):
            yield where
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _non_finite(part, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, list | tuple):
        for k, part in enumerate(value):
            yield from _non_finite(part, f"{where}[{k}]", depth + 1)
    elif isinstance(value, nn.Module):
        yield from _non_finite(dict(value.state_dict()), where, depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value).__name__ in DOCUMENTED:
            return
        for field in dataclasses.fields(value):
            yield from _non_finite(getattr(value, field.name, None), f"{where}.{field.name}", depth + 1)


def _marks(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _mark(value) for name, value in arguments.items()}


def _mark(value: Any, depth: int = 0) -> Any:
    """A copy of what could be changed in place."""
    if isinstance(value, nn.parameter.UninitializedParameter):
        return None
    if isinstance(value, Tensor):
        if value.is_nested or value.is_quantized or value.layout != torch.strided or value.device.type == "meta":
            return None
        return (value.detach().clone(), value.requires_grad)
    if isinstance(value, np.ndarray):
        return None if value.dtype == object else copy.deepcopy(value)
    if isinstance(value, nn.Module):
        return [_mark(part) for part in value.state_dict().values()], value.training
    if isinstance(value, mfoc.Particles):
        return [_mark(value.state, depth + 1), _mark(value.data, depth + 1)]
    if isinstance(value, Mapping):
        return {str(key): _mark(part, depth + 1) for key, part in value.items()} if depth < 4 else None
    if isinstance(value, list | tuple | set):
        return [_mark(part, depth + 1) for part in value] if depth < 4 else None
    return None


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and bool(
            torch.equal(torch.nan_to_num(left) if left.is_floating_point() else left,
                        torch.nan_to_num(right) if right.is_floating_point() else right)
        )  # fmt: skip
    if isinstance(left, np.ndarray):
        return left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _process() -> dict[str, Any]:
    return {
        "the default dtype": torch.get_default_dtype(),
        "torch's generator": torch.get_rng_state(),
        "numpy's generator": np.random.get_state()[1].copy(),  # noqa: NPY002
        "python's generator": stdlib_random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "numpy's error state": np.geterr(),
        "print options": repr(torch._tensor_str.PRINT_OPTS),
    }


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in before if not _same(before[name], after[name])]


def _restore(process: dict[str, Any]) -> None:
    torch.set_default_dtype(process["the default dtype"])
    torch.set_rng_state(process["torch's generator"])
    stdlib_random.setstate(process["python's generator"])
    torch.set_grad_enabled(process["grad mode"])

"""A device on paper: what a GPU would be asked, told where there is none.

``on_paper()`` opens a device named "paper" whose tensors keep their numbers on the CPU, out of sight. As on a GPU,
tensors of two devices do not mix, what is made without a device is on the CPU, and the host only sees a number by
waiting for it. Unlike a GPU, it writes down each such wait, with the line of the library that asked for it:

    with on_paper() as log:
        x = to_paper(torch.ones(3))
        bool(x.sum() > 2)
    log.waits   # ["file.py:12 _local_scalar_dense"]

It stands on torch's own means for backends written in Python (torch >= 2.10); ``AVAILABLE`` says whether they are here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

# What makes the host wait for the device: it asks for a number, for a shape that depends on numbers, or whether a
# decomposition went well.
WAITS = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero", "unique_dim", "_unique2", "_unique",
    "unique_consecutive", "_linalg_eigh", "_linalg_svd", "linalg_eig", "_linalg_eigvals", "linalg_lstsq",
    "_linalg_check_errors",
}  # fmt: skip


class Mixed(RuntimeError):
    """Tensors of two devices met."""


@dataclass
class Log:
    """What the device was asked.

    Attributes:
        waits: where the host waited for it, ``"mfoc/solving/loop.py:83 _local_scalar_dense"``, in order.
        copies: where numbers came from the host, which may wait, too: ``torch.tensor(list, device=...)``.
    """

    waits: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.waits.clear()
        self.copies.clear()


HOST = torch.Generator


class _Kind(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, HOST)


class Generator(torch.Generator, metaclass=_Kind):
    """One that says it is on paper; ``torch.Generator(device="paper")`` while the device is open."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != "paper":
            return HOST(device)
        return super().__new__(cls, "cpu")

    @property
    def device(self) -> torch.device:
        return torch.device("paper:0")


_STATE = {"paper": HOST().manual_seed(0).get_state()}  # of the device's global generator


class Paper(Tensor):
    """A tensor that says it is on "paper", and holds one of the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Paper:
        made: Paper = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="paper:0",
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"Paper({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Mixed(f"{func}: a tensor on paper is used after its device was closed")


class _Device(TorchDispatchMode):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given: list[Tensor] = []
        plain_args, plain_kwargs = _held(args, given), _held(kwargs, given)
        name = func._schema.name.removeprefix("aten::")
        there = any(type(leaf) is Paper for leaf in given)
        wanted = kwargs.get("device")
        goes = there if wanted is None else torch.device(wanted).type == "paper"
        if wanted is not None and goes:
            plain_kwargs["device"] = torch.device("cpu")
        self._written_down(name, args, given, there, goes)
        if torch.Tag.nondeterministic_seeded in func.tags:
            found = self._drawn(goes, func, plain_args, plain_kwargs)
        else:
            found = func(*plain_args, **plain_kwargs)
        if not goes:
            return found
        if func._schema.is_mutable and there and isinstance(found, Tensor):  # in place: what it was given, and no copy
            return next(each for each in given if each is found or (type(each) is Paper and each.held is found))
        return _wrapped(found)

    def _written_down(self, name: str, args: Any, given: list[Tensor], there: bool, goes: bool) -> None:
        if not there and not goes:
            return
        if name == "copy_" and len({type(leaf) is Paper for leaf in given[:2]}) == 2:
            kept = self.log.copies if type(given[0]) is Paper else self.log.waits
            kept.append(f"{asked()} copy_")
        elif name == "_to_copy" and there != goes:
            kept = self.log.copies if goes else self.log.waits
            kept.append(f"{asked()} to the {'device' if goes else 'host'}")
        elif there:
            self._check_one_device(name, given)
        if there and (name in WAITS or _masked(name, args)):
            self.log.waits.append(f"{asked()} {name}")

    @staticmethod
    def _drawn(goes: bool, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A random function: from a generator of its device, or from the global one of its device."""
        generator = kwargs.get("generator")
        if generator is not None or not goes:
            return func(*args, **kwargs)
        host = torch.default_generator.get_state()
        torch.default_generator.set_state(_STATE["paper"])
        try:
            return func(*args, **kwargs)
        finally:
            _STATE["paper"] = torch.default_generator.get_state()
            torch.default_generator.set_state(host)

    @staticmethod
    def _check_one_device(name: str, given: list[Tensor]) -> None:
        """As CUDA: numbers of the host go with tensors of the device, and so do indices; nothing else does."""
        if name in ("_to_copy", "index.Tensor", "_index_put_impl_", "index_put_", "index", "index_put"):
            return
        for leaf in given:
            if type(leaf) is not Paper and leaf.dim():
                raise Mixed(f"{name} at {asked()}: a tensor {tuple(leaf.shape)} of the CPU among tensors on paper")


def _held(value: Any, given: list[Tensor]) -> Any:
    """The arguments with what Paper holds; every tensor among them is added to what is given."""
    if type(value) is Paper:
        given.append(value)
        return value.held
    if isinstance(value, Tensor):
        given.append(value)
        return value
    if isinstance(value, (list, tuple)):
        return type(value)([_held(each, given) for each in value])
    return {key: _held(each, given) for key, each in value.items()} if isinstance(value, dict) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Paper(value)
    return type(value)([_wrapped(each) for each in value]) if isinstance(value, list | tuple) else value


class _Data(TorchFunctionMode):
    """Tensors of numbers of Python's are made below the reach of a dispatch mode: here on the CPU, then copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is not None:
            wanted = kwargs.get("device")
            like = isinstance(args[0], Paper) if args else False
            goes = like if wanted is None else torch.device(wanted).type == "paper"
            if goes != (type(kwargs["generator"]) is Generator):
                raise Mixed(f"a generator of one device for a tensor of another, at {asked()}")
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            wanted = kwargs.get("device")
            if wanted is not None and torch.device(wanted).type == "paper":
                return func(*args, **{**kwargs, "device": "cpu"}).to(wanted)
        elif func is torch.Tensor.new_tensor and isinstance(args[0], Paper):
            device = kwargs.pop("device", None) or args[0].device
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(device)
        elif func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and type(args[0]) is Paper:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(each, list) for each in index):
                index = tuple(torch.tensor(each) if isinstance(each, list) else each for each in index)
                return func(args[0], index, *args[2:])
        elif func is torch.Tensor.tolist and isinstance(args[0], Paper):
            return args[0].detach().cpu().tolist()
        elif func is torch.Tensor.numpy and isinstance(args[0], Paper):
            raise TypeError("a tensor on paper is no array of NumPy's: use .cpu() first")
        found = func(*args, **kwargs)
        if func == torch.Tensor.data.__set__ and isinstance(args[0], Paper):  # type: ignore[attr-defined]
            args[0].held = args[1].held
        return found


def _masked(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the shape of an indexing depends on a mask."""
    if not name.startswith("index") or len(args) < 2 or not isinstance(args[1], list | tuple):
        return False
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def asked() -> str:
    """The innermost line of the library (or, failing that, of the tests) that is being run."""
    frame: FrameType | None = sys._getframe(1)
    test = "torch"
    while frame is not None:
        if file := _ours(frame.f_code.co_filename):
            place = f"{file}:{frame.f_lineno}"
            if file.startswith(("mfoc", "paradigms")) and file != "mfoc/tree.py":  # which reads numbers for others
                return place
            test = test if test != "torch" else place
        frame = frame.f_back
    return test


@functools.cache
def _ours(file: str) -> str:
    """The name of a file of the repository within it; empty for others, and for this one."""
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) and path != Path(__file__) else ""


class _Hook(backend_registration._DummyPrivateUse1Hook if AVAILABLE else object):  # type: ignore[misc]
    def is_available(self) -> bool:  # torch.accelerator is to stay as it was for the tests that come after
        return False


def register() -> None:
    """Before the first backward pass of the process: autograd counts the devices then, once and for all."""
    if AVAILABLE and torch._C._get_privateuse1_backend_name() != "paper":
        module = ModuleType("paper")
        module.is_available = lambda: False  # type: ignore[attr-defined]
        module.device_count = lambda: 1  # type: ignore[attr-defined]
        module.current_device = lambda: 0  # type: ignore[attr-defined]
        module._is_in_bad_fork = lambda: False  # type: ignore[attr-defined]
        module.get_rng_state = lambda device=0: _STATE["paper"].clone()  # type: ignore[attr-defined]
        module.set_rng_state = lambda state, device=0: _STATE.update(paper=state)  # type: ignore[attr-defined]
        module.manual_seed_all = lambda seed: None  # type: ignore[attr-defined]
        backend_registration._setup_privateuseone_for_python_backend("paper", module, hook=_Hook())


@contextmanager
def on_paper() -> Iterator[Log]:
    """The device, as long as the block is open."""
    register()
    log = Log()
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.Generator = Generator  # type: ignore[misc]
    torch.__future__.set_swap_module_params_on_conversion(True)  # net.to() keeps the very parameters, as on a GPU
    try:
        with _Device(log), _Data():
            yield log
    finally:
        torch.Generator = HOST  # type: ignore[misc]
        torch.__future__.set_swap_module_params_on_conversion(swap)


def to_paper(tree: Any) -> Any:
    """The tensors of a tree, copied there."""
    import mfoc

    return mfoc.tree.map(lambda leaf: Paper(leaf.detach().clone()) if isinstance(leaf, Tensor) else leaf, tree)


def from_paper(tree: Any) -> Any:
    """The tensors of a tree, as the CPU has them."""
    import mfoc

    return mfoc.tree.map(lambda leaf: leaf.detach().held if type(leaf) is Paper else leaf, tree)

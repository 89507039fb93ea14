"""What the kernel of a network, or a gradient of each sample, is refused for, with what to do; and free memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from mfoc.analysis.kernel.taps import normal_like, plainly
from mfoc.checks import check_instance, check_plain
from mfoc.draws import draws, watched
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import mixes, pure_copy, random_parts, trainable, without_inplace


@dataclass(frozen=True)
class Subject:
    """What is asked of the network, as refusals say it."""

    whole: str  # it "is of a function"
    alone: str  # what does not exist where samples interact
    zero: str  # what "would be zero" without trained parameters


KERNEL = Subject("the kernel", "a kernel of two samples", "its kernel")
GRADIENTS = Subject("a gradient", "the gradient of one sample", "its gradient")


def check_samples(**samples: object) -> None:
    """Refuses what is no tensor ``[N, ...]`` of finite numbers with N of at least one.

    Raises:
        InvalidType: it is no tensor.
        InvalidValue: it is empty, has no axis, or is not finite.
    """
    for name, x in samples.items():
        check_plain("a tensor of samples [N, ...]", **{name: x})
        assert isinstance(x, Tensor)
        if x.dim() == 0 or not x.numel():
            raise InvalidValue(f"{name} has shape {tuple(x.shape)}; expected at least one sample, [N, ...]")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise InvalidValue(f"{name} holds NaN or infinity; the kernel is of finite samples")


def usable(x: Tensor) -> Tensor:
    """The samples without their history; a copy where they were made in inference mode, which autograd cannot use."""
    return x.clone() if x.is_inference() else x.detach()


def check_alike(x1: Tensor, x2: Tensor) -> None:
    """Refuses two sets of samples that are not of one kind.

    Raises:
        InvalidValue: they differ in the shape of a sample, in dtype or in device.
    """
    for what, one, other in (
        ("samples of shape", tuple(x1.shape[1:]), tuple(x2.shape[1:])),
        ("dtype", x1.dtype, x2.dtype),
        ("device", x1.device, x2.device),
    ):
        if one != other:
            raise InvalidValue(f"x1 has {what} {one} and x2 {other}; a kernel is of two sets of one kind")


def private_copy(net: nn.Module, subject: Subject = KERNEL) -> nn.Module:
    """A copy of a network whose samples are treated one by one, to differentiate; the user's own is never touched.

    Args:
        net: the network.
        subject: what is asked of it.

    Raises:
        InvalidType: it is no module.
        InvalidValue: nothing to train, lazy or complex parameters, batch norm on the statistics of the batch, dropout.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    if torch.is_inference_mode_enabled():
        raise InvalidValue("there are no gradients in torch.inference_mode(); call this outside of it")
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidValue(f"parameter {name!r} is lazy and has no shape yet; run the network once on a batch")
        if parameter.is_complex():
            raise InvalidValue(f"parameter {name!r} is complex; hold its real and imaginary parts as two parameters")
    if not trainable(net):
        raise InvalidValue(f"net has no parameter that requires grad; {subject.zero} would be zero")
    for name, part in net.named_modules():
        if mixes(part):
            cure = (
                "call .eval() on it" if part.track_running_stats else "give it track_running_stats=True, or GroupNorm"
            )
            raise InvalidValue(
                f"module {name!r} ({type(part).__name__}) normalises by the statistics of the batch, so that samples "
                f"interact and {subject.alone} does not exist; {cure}"
            )
    _refuse_power_steps(net, subject)
    for name, part in random_parts(net):
        raise InvalidValue(
            f"module {name!r} ({type(part).__name__}) is random in training mode, and {subject.whole} is of a "
            "function; call .eval() on it"
        )
    private = without_inplace(pure_copy(net))  # the samples may be a user's
    for part in private.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.sparse = False
            part.scale_grad_by_freq = False  # a rule of the optimiser's, which counts over the batch
    return private


def _refuse_power_steps(net: nn.Module, subject: Subject) -> None:
    """Refuses spectral norms in training mode, which take a step towards the largest singular value at each call."""
    for name, part in net.named_modules():
        parametrised = type(part).__name__ == "_SpectralNorm" and hasattr(part, "_u")
        hooks = part.__dict__["_forward_pre_hooks"].values()
        if part.training and (parametrised or any(isinstance(hook, SpectralNorm) for hook in hooks)):
            layer = name.split(".parametrizations")[0] if parametrised else name
            raise InvalidValue(
                f"layer {layer!r} has a spectral norm in training mode, whose estimate moves each time it is "
                f"evaluated, and {subject.whole} is of a function; call .eval() on the network"
            )


@contextmanager
def _untouched(x: Tensor) -> Iterator[None]:
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), plainly():
        yield


def check_outputs(net: nn.Module, x: Tensor, subject: Subject = KERNEL) -> Tensor:
    """The outputs of three samples, when they are as the kernel needs them.

    Args:
        net: a private copy.
        x: samples ``[N, ...]``.
        subject: what is asked of it.

    Raises:
        InvalidType: the output is no tensor.
        InvalidValue: the network cannot be evaluated, is random or changes by being evaluated, lets samples interact,
            or has outputs that are not finite numbers ``[N, ...]`` which depend on its parameters.
    """
    few = x[torch.arange(3, device=x.device) % len(x)]
    with _untouched(x):
        drawn = watched()
        out = _evaluated(net, few)
        if few._version:
            raise InvalidValue(
                "net writes over the samples it is given, by an operation in place; let it clone them first"
            )
        _check_output(out, few, subject)
        again = _evaluated(net, few)
        if not _close(out, again) or (drawn() and draws(lambda: _evaluated(net, few))):
            raise InvalidValue(
                "net gives another output each time it is evaluated on the same samples: it draws random numbers or "
                f"changes its own state. {subject.whole.capitalize()} is of a function; call .eval() on it"
            )
        for moved, kept in _moves(x, few):
            try:
                other = net(moved)
            except Exception:  # whatever a module says of samples that are none of the user's
                continue
            if not _close(out[kept], other[kept]):
                raise InvalidValue(
                    "the samples of a batch interact in net: moving one changes the output of another, so that "
                    f"{subject.alone} does not exist. Evaluate what they share beforehand and hold it fixed"
                )
    return out.detach()


def _evaluated(net: nn.Module, x: Tensor) -> Tensor:
    try:
        found: Tensor = net(x)
    except Exception as error:  # whatever the user's modules raise
        kind = str(x.dtype).removeprefix("torch.")
        raise InvalidValue(f"net cannot be evaluated on samples {kind}{list(x.shape)}: {error}") from error
    return found


def _check_output(out: object, x: Tensor, subject: Subject) -> None:
    check_instance(Tensor, "a network whose output is one tensor [N, ...]: wrap it in a module", output=out)
    assert isinstance(out, Tensor)
    if out.dim() == 0 or out.shape[0] != len(x) or not out.numel():
        raise InvalidValue(
            f"the output of net on {len(x)} samples has shape {tuple(out.shape)}; expected the samples in its first "
            "axis, [N, ...] (wrap a network with batch_first=False in a module that transposes)"
        )
    if not out.is_floating_point():
        raise InvalidType(f"the output of net is {out.dtype}; expected real floating-point numbers")
    if not out.requires_grad:
        raise InvalidValue(
            f"the output of net depends on no parameter that requires grad; {subject.zero} would be zero"
        )
    if not bool(out.isfinite().all()):
        raise InvalidValue("the output of net is not finite")


def _moves(x: Tensor, few: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
    """The samples with one of them somewhere else, and those that stay."""
    moved = few.clone()
    moved[2] = few[1]
    yield moved, [0, 1]
    if few.is_floating_point():
        moved = few.clone()
        moved[0] += (1 + few.abs().amax()) * normal_like(few)[0]
        yield moved, [1, 2]


def _close(left: Tensor, right: Tensor) -> bool:
    allowed = 1e2 * torch.finfo(left.dtype).eps * left.abs().amax()  # a batch may be summed in another order
    return bool((left - right).abs().amax() <= allowed)


def free_memory(device: torch.device) -> int:
    """About how many bytes are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pages = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names) if hasattr(os, "sysconf_names") else False
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if pages else 2**32


def check_fits(shape: tuple[int, ...], dtype: torch.dtype, memory: int, *, cures: str) -> None:
    """Refuses a kernel that would not fit.

    Raises:
        InvalidValue: it takes more than ``memory`` bytes.
    """
    needed = dtype.itemsize
    for length in shape:
        needed *= length
    if needed > memory:
        raise InvalidValue(
            f"the kernel {list(shape)} would take {_bytes(needed)}, and {_bytes(memory)} may be taken (memory=); "
            f"{cures}"
        )


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"

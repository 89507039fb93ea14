"""What a network is made of, and what of it is refused: the one place that looks at modules.

For adapters of your own, too: everything here is public. Functions that find something yield (name, module) pairs, or
pairs of names, so that an error can say which part it is.

It does not check its arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from mfoc.checks import check_instance
from mfoc.errors import InvalidValue
from mfoc.networks.copies import Through, computed, refuse_other
from mfoc.networks.references import refuse_captured
from mfoc.networks.reparametrised import made_exact

Module = TypeVar("Module", bound=nn.Module)
Norm = nn.modules.batchnorm._NormBase

# Attributes that torch gives every module, and those among them that hold its hooks.
BOOKKEEPING = frozenset(nn.Module().__dict__)
HOOKS = tuple(sorted(key for key in BOOKKEEPING if key.endswith("_hooks")))

# Layers without weights that act on each number alone, whatever its place and the shape it comes in.
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Tanhshrink, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip

# Layers that are affine in their input, whatever their settings. A Sequential of them is, too.
_POOLS, _CONVOLUTIONS = nn.modules.pooling._AvgPoolNd, nn.modules.conv._ConvNd
_AFFINE = (nn.Linear, _CONVOLUTIONS, _POOLS, nn.Identity, nn.Flatten, nn.Unflatten)
_SPREAD = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_STOCHASTIC = ("StochasticDepth", "DropPath", "FractionalMaxPool2d", "RReLU")


# ---- what a module is


def hooked(module: nn.Module) -> bool:
    """Whether a module itself (not its parts) has hooks, or a ``__call__`` of its own.

    Its ``forward`` alone is then not what it computes.
    """
    return any(module.__dict__[key] for key in HOOKS) or _calls_itself(module)


def has_own_pass(module: nn.Module) -> bool:
    """Whether a call of a module itself is more than ``forward``: by hooks on a pass, by a ``__call__`` of its own."""
    around = any(module.__dict__[key] for key in HOOKS if key.startswith(("_forward", "_backward")))
    return around or _calls_itself(module)


def _calls_itself(module: nn.Module) -> bool:
    return type(module).__call__ is not nn.Module.__call__


def is_chain(module: nn.Module) -> bool:
    """Whether the forward pass is that of ``nn.Sequential`` (a subclass may have one of its own)."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_affine(module: nn.Module) -> bool:
    """Whether a module is known to be affine in its input."""
    if hooked(module):
        return False
    if type(module) is nn.Sequential:
        return all(is_affine(part) for part in module)
    called = getattr(module, "_called", None)  # a stage cut from a larger module, where it is a chain of calls
    if called is not None:
        return all(is_affine(module.get_submodule(name)) for name in called)
    known = type(module).__module__.startswith("torch.nn.")  # a subclass may have a forward pass of its own
    return known and isinstance(module, _AFFINE)


def is_dropout(module: nn.Module, *, active: bool = False) -> bool:
    """Whether a module is one of torch's dropout layers; with ``active``, one that is on."""
    found = isinstance(module, nn.modules.dropout._DropoutNd)
    return found and (not active or bool(module.training and module.p > 0))  # type: ignore[operator]


def mixes(module: nn.Module) -> bool:
    """Whether a module is batch norm on the statistics of the batch: in training mode, or without running averages."""
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return batch_norm and bool(module.training or not module.track_running_stats)


# ---- what a network holds


def trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require grad, by name, in the order of the module; one of several names has its first."""
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def shared_parameters(net: nn.Module, *, aliases: bool = True) -> Iterator[tuple[str, str]]:
    """Parameters that are met again: each with the name it has there and the one it had before.

    With ``aliases`` those of a submodule of several names count; without, one parameter in several submodules alone.
    """
    seen: dict[int, str] = {}
    for prefix, part in net.named_modules(remove_duplicate=not aliases):
        for leaf, parameter in part._parameters.items():
            name = f"{prefix}.{leaf}" if prefix else leaf
            if parameter is not None and seen.setdefault(id(parameter), name) != name:
                yield name, seen[id(parameter)]


def has_aliases(net: nn.Module) -> bool:
    """Whether a submodule with parameters has several names."""
    found = [id(part) for _, part in net.named_modules(remove_duplicate=False) if any(True for _ in part.parameters())]
    return len(set(found)) < len(found)


def bare_matrices(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of two or more lengths above one that a container holds beside its parts, and applies by itself."""
    for name, part in net.named_modules():
        whole = isinstance(part, nn.MultiheadAttention) or parametrize.is_parametrized(part)
        lists = isinstance(part, nn.ParameterList | nn.ParameterDict)
        if whole or not (lists or any(True for _ in part.children())):
            continue
        for leaf, parameter in part.named_parameters(recurse=False):
            if sum(length > 1 for length in parameter.shape) > 1:
                yield (f"{name}.{leaf}" if name else leaf), parameter


def training_norms(net: nn.Module, *, instance: bool = True) -> Iterator[tuple[str, Norm]]:
    """Batch norms in training mode, which normalise by the statistics of what they are given; instance norms, too.

    With ``instance=False`` batch norms alone, by which the particles of a batch depend on each other.
    """
    kind = Norm if instance else nn.modules.batchnorm._BatchNorm
    return ((name, part) for name, part in net.named_modules() if isinstance(part, kind) and part.training)


def random_parts(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that draw random numbers in a forward pass."""
    for name, module in net.named_modules():
        probability = getattr(module, "dropout", 0)  # RNNs, multi-head attention
        inside = isinstance(probability, int | float) and probability > 0
        if module.training and (is_dropout(module, active=True) or inside or _drops(module)):
            yield name, module


def _drops(module: nn.Module) -> bool:
    """Whether a module is random by its kind; one that drops with a probability says which."""
    probability = next((getattr(module, key) for key in ("p", "drop_prob") if hasattr(module, key)), 1)
    return type(module).__name__ in _STOCHASTIC and probability not in (0, None)


# ---- private copies


def unwrapped(net: Module) -> Module:
    """The network itself, where it is compiled (``torch.compile``) or spread over devices (``nn.DataParallel``)."""
    while _wraps(net):
        net = next(iter(net._modules.values()))  # type: ignore[assignment]
    return net


def _wraps(part: nn.Module | None) -> bool:
    compiled = type(part).__module__.startswith("torch._dynamo")  # not imported to be asked: it takes seconds
    return isinstance(part, nn.DataParallel) or (compiled and isinstance(part, nn.Module) and len(part._modules) == 1)


def without_wrappers(private: Module) -> Module:
    """The same module, a private copy, whose parts are compiled or spread over devices no more."""
    for part in list(private.modules()):
        for key, child in part._modules.items():
            if child is not None and _wraps(child):
                part._modules[key] = Through(child)
    return private


def without_inplace(module: Module) -> Module:
    """The same module, whose layers write over their inputs no more: those may be a user's tensors."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    return module


def copied(module: Module, name: str = "") -> Module:
    """A copy, by ``copy.deepcopy``. An error calls the module by ``name``.

    Tensors that were computed and kept (a pruned weight, the last activations) are copied as values.

    Raises:
        InvalidValue: it cannot be copied, or a function in it holds one of its parts: that of the original, in a copy.
    """
    refuse_captured(module, name)
    held = (value for part in module.modules() for value in part.__dict__.values() if isinstance(value, Tensor))
    memo = {id(value): computed(value) for value in held if not value.is_leaf}
    memo |= {id(b): b.detach().clone() for b in module.buffers() if not b.is_leaf}
    try:
        made = copy.deepcopy(module, dict(memo))
    except Exception as error:  # whatever the module's parts raise
        called = f"module {name!r}" if name else "net"
        raise InvalidValue(f"{called} cannot be copied, and has to be, by copy.deepcopy: {error}") from error
    refuse_other(made, module, name)
    return made


def pure_copy(module: Module, name: str = "") -> Module:
    """A private copy that advances no statistics and changes no value; it may write into its inputs, as the module.

    In training mode batch norm uses the statistics of the cloud: without running averages there is none to advance; and
    spectral norm is exact. An error calls the module by ``name``.

    Raises:
        InvalidValue: it cannot be copied.
    """
    private = without_wrappers(copied(module, name))
    for _, norm in training_norms(private):
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    made_exact(private)
    # A layer by itself need not write into its input; within others it may be meant to.
    if type(private) in ELEMENTWISE and getattr(private, "inplace", False):
        private.inplace = False  # type: ignore[assignment]
    return private


# ---- what is refused, with an InvalidValue that says which part it is


def refuse_lazy(net: nn.Module) -> None:
    """Refuses parameters and buffers that have no shape or no values yet."""
    for name, leaf in (*net.named_parameters(), *net.named_buffers()):
        if isinstance(leaf, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            kind = "parameter" if isinstance(leaf, nn.Parameter) else "buffer"
            raise InvalidValue(f"{kind} {name!r} is lazy and has no shape yet; run the network once on a batch")
        if leaf.is_meta:
            raise InvalidValue(f"{name!r} is on the meta device and has no values; load them, net.to_empty(device=...)")


def refuse_sharing(net: nn.Module, *, aliases: bool = True) -> None:
    """Refuses a parameter that is used in two places; see ``shared_parameters``."""
    for name, first in shared_parameters(net, aliases=aliases):
        raise InvalidValue(
            f"parameter {name!r} is shared with {first!r}; a per-stage control cannot be shared. "
            "Give each stage its own copy, or write a Problem with schedule=mfoc.tied"
        )


def refuse_randomness(net: nn.Module) -> None:
    """Refuses modules that draw random numbers in a forward pass."""
    for name, module in random_parts(net):
        raise InvalidValue(
            f"module {name!r} ({type(module).__name__}) is random in training mode and dynamics must be pure: take its "
            "mask from the data with mfoc.networks.MaskedDropout, set its probability to 0, or call .eval() on it"
        )


def refuse_foreign(net: nn.Module) -> None:
    """Refuses parts that weights cannot be given to from outside, and weights that are no real numbers."""
    for name, part in net.named_modules():
        called = f"module {name!r}" if name else "net"
        kind = type(part).__name__
        if isinstance(part, torch.jit.ScriptModule):
            raise InvalidValue(f"{called} is compiled by TorchScript ({kind}); give the module that it was made from")
        if kind in _SPREAD:
            raise InvalidValue(
                f"{called} is {kind}; give the module in it, net.module: expectations are taken over all ranks by "
                "the library itself (see mfoc.distributed)"
            )
        if slots := [key for base in type(part).__mro__ for key in base.__dict__.get("__slots__", ())]:
            raise InvalidValue(
                f"{called} has __slots__, {slots}, which torch leaves out of copies; make them ordinary attributes"
            )
        hooks = part.__dict__["_forward_pre_hooks"].values()
        if part.training and any(isinstance(hook, SpectralNorm) for hook in hooks):
            raise InvalidValue(
                f"{called} uses torch.nn.utils.spectral_norm in training mode, which remembers the weights before; use "
                "torch.nn.utils.parametrizations.spectral_norm, or call .eval() on it"
            )
    for name, parameter in trainable(net).items():
        if parameter.is_complex():
            raise InvalidValue(
                f"parameter {name!r} is {parameter.dtype} and controls are real numbers; hold its real and imaginary "
                "parts, torch.view_as_real(w), and join them in the forward pass by torch.view_as_complex"
            )
        if not parameter.is_leaf:
            raise InvalidValue(
                f"parameter {name!r} is computed from others (it is no leaf); give the module they are of"
            )


def refuse_parameter_hooks(net: nn.Module) -> None:
    """Refuses hooks on the gradients of parameters, which a control that stands in their place does not have."""
    for name, parameter in trainable(net).items():
        if any(getattr(parameter, kind, None) for kind in _PARAMETER_HOOKS):
            raise InvalidValue(
                f"parameter {name!r} has a hook on its gradient, and a control in its place has none; remove the hook, "
                "and change the gradient in the forward pass, by a hook on an activation, or in a solver"
            )


def refuse_unfit(net: nn.Module) -> None:
    """Refuses what cannot be trained as a control: what is no module (``InvalidType``), or has one of those parts."""
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    refuse_lazy(net)
    refuse_foreign(net)
    refuse_parameter_hooks(net)
    refuse_captured(net)
    refuse_randomness(net)

"""What a network is made of, and what of it is refused: the one place that looks at modules.

For adapters of your own, too: everything here is public. Functions that find something yield (name, module) pairs, or
pairs of names, so that an error can say which part it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mfoc.checks import check_instance
from mfoc.errors import InvalidValue

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
_OLD = {WeightNorm: "weight_norm", SpectralNorm: "spectral_norm"}  # hooks whose weights are no leaves
_STOCHASTIC = ("StochasticDepth", "DropPath", "FractionalMaxPool2d", "RReLU")


# ---- what a module is


def hooked(module: nn.Module) -> bool:
    """Whether a module itself (not its parts) has hooks: its ``forward`` alone is then not what it computes."""
    return any(module.__dict__[key] for key in HOOKS)


def has_own_pass(module: nn.Module) -> bool:
    """Whether a module itself has hooks that act on its forward or backward pass (others concern its saved state)."""
    return any(module.__dict__[key] for key in HOOKS if key.startswith(("_forward", "_backward")))


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
        if module.training and (is_dropout(module, active=True) or inside or type(module).__name__ in _STOCHASTIC):
            yield name, module


# ---- private copies


def without_inplace(module: Module) -> Module:
    """The same module, whose layers write over their inputs no more: those may be a user's tensors."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    return module


def pure_copy(module: Module, name: str = "") -> Module:
    """A private copy that writes neither into its inputs nor into itself, and changes no value.

    In training mode batch norm uses the statistics of the cloud: without running averages there is none to advance.
    An error calls the module by ``name``.

    Raises:
        InvalidValue: it cannot be copied.
    """
    try:
        private = copy.deepcopy(module)
    except Exception as error:  # whatever the module's parts raise
        called = f"module {name!r}" if name else "net"
        for inner, part in module.named_modules():
            old = next(
                (old for hook in part.__dict__["_forward_pre_hooks"].values() if (old := _OLD.get(type(hook)))), ""
            )
            if old:
                user = f"its layer {inner!r}" if inner else "it"
                raise InvalidValue(
                    f"{called} cannot be copied: {user} uses torch.nn.utils.{old}; use "
                    f"torch.nn.utils.parametrizations.{old}, which can"
                ) from error
        raise InvalidValue(f"{called} cannot be copied, and has to be, by copy.deepcopy: {error}") from error
    for _, norm in training_norms(private):
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return without_inplace(private)


# ---- what is refused, with an InvalidValue that says which part it is


def refuse_lazy(net: nn.Module) -> None:
    """Refuses parameters that have no shape yet."""
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidValue(f"parameter {name!r} is lazy and has no shape yet; run the network once on a batch")


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


def refuse_unfit(net: nn.Module, *, aliases: bool = True) -> None:
    """Refuses what cannot be trained as a control: what is no module (``InvalidType``), or has one of those parts."""
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    refuse_lazy(net)
    refuse_sharing(net, aliases=aliases)
    refuse_randomness(net)

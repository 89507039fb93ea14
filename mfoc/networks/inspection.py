"""What a network is made of, and what of it is refused."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from mfoc.errors import InvalidValue

BOOKKEEPING = frozenset(nn.Module().__dict__)


HOOKS = [key for key in BOOKKEEPING if key.endswith("_hooks")]


# Layers that are affine in their input, whatever their settings. A Sequential of them is, too.
_AFFINE = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.pooling._AvgPoolNd,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
)


def is_affine(module: nn.Module) -> bool:
    """Whether a module is known to be affine in its input."""
    if any(module.__dict__[key] for key in HOOKS):
        return False
    if type(module) is nn.Sequential:
        return all(is_affine(part) for part in module)
    if isinstance(module, fx.GraphModule):  # a stage cut from a larger module
        steps = [node for node in module.graph.nodes if node.op not in ("placeholder", "output")]
        return all(n.op == "call_module" and is_affine(module.get_submodule(str(n.target))) for n in steps)
    known = type(module).__module__.startswith("torch.nn.")  # a subclass may have a forward pass of its own
    return known and isinstance(module, _AFFINE)


def make_pure(module: nn.Module) -> None:
    """Takes from a private copy what writes into its inputs or into itself, and changes no value.

    In training mode batch norm uses the cloud's statistics: without running averages there is none to advance.
    """
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
        if isinstance(part, nn.modules.batchnorm._NormBase | nn.InstanceNorm2d) and part.training:
            part.running_mean = part.running_var = part.num_batches_tracked = None


def refuse_lazy(net: nn.Module) -> None:
    """Refuses parameters that have no shape yet."""
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InvalidValue(f"parameter {name!r} is lazy; run the network once on a batch before from_module")


def refuse_sharing(net: nn.Module) -> None:
    """Refuses a parameter that is used in two places."""
    seen: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            raise InvalidValue(
                f"parameter {name!r} is shared with {seen[id(parameter)]!r}; a per-stage control cannot be shared. "
                "Give each stage its own copy, or write a Problem with schedule=mfoc.tied"
            )
        seen[id(parameter)] = name


def random_parts(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that draw random numbers in a forward pass, by name."""
    for name, module in net.named_modules():
        if not module.training:
            continue
        probability = getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
        probability = getattr(module, "dropout", probability)  # RNNs, multi-head attention
        stochastic = type(module).__name__ in ("StochasticDepth", "DropPath", "FractionalMaxPool2d", "RReLU")
        if stochastic or (isinstance(probability, int | float) and probability > 0):
            yield name, module


def refuse_randomness(net: nn.Module) -> None:
    """Refuses modules that draw random numbers in a forward pass."""
    for name, module in random_parts(net):
        raise InvalidValue(
            f"module {name!r} ({type(module).__name__}) is random in training mode and dynamics must be pure: take its "
            "mask from the data with mfoc.networks.MaskedDropout, set its probability to 0, or call .eval() on it"
        )

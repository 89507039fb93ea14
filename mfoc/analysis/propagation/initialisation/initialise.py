"""Initialisation at criticality: perturbations of a signal, and gradients, keep their size at any depth.

Chains of dense or convolution layers and activations are initialised by mean-field theory. Every other network is cut
into blocks, whose gains are tuned on an input. Nothing is written before all of it is known.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.analysis.jacobians import refusing_checkpoints
from mfoc.analysis.propagation.initialisation.by_theory import initialise as by_theory
from mfoc.analysis.propagation.initialisation.by_theory import length_of
from mfoc.analysis.propagation.initialisation.chains import Layer, layers_of
from mfoc.analysis.propagation.initialisation.drafts import Draft, quiet
from mfoc.analysis.propagation.initialisation.report import Initialisation, InitialisedBlock
from mfoc.analysis.propagation.initialisation.segments import Segment, own, refuse_fixed, segments_of
from mfoc.analysis.propagation.initialisation.streams import run
from mfoc.analysis.propagation.initialisation.tuning import BAND, STEER, Tuned, Tuner
from mfoc.checks import check_flag, check_instance, check_integer, check_plain, check_positive, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import bare_matrices, refuse_lazy

_LENGTHS = (0.2, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)  # where else q* is looked for
_LOST = 1e3  # by this factor q has vanished or exploded, whatever the network does with it
_OUT_OF_SCALE = 1e3  # a factor of weights that makes up for what the network's own code destroys
_HARD = 0.3  # how far gains may be off one where no length lasts at gain one
_SPREAD = 4.0  # by this factor differences of length may grow over the depth


def critical_init_(
    net: nn.Module,
    x: Tensor | tuple[Any, ...] | None = None,
    *,
    q_star: float = 0.05,
    orthogonal: bool = True,
    seed: int = 0,
) -> Initialisation:
    """Initialises a network in place so that each of its blocks has gain chi = 1: neither ordered nor chaotic.

    **Chains** of ``Linear`` / ``Conv`` layers and activations (``nn.Sequential``, nested) need no data. Each layer has
    the weight variance ``1 / E phi'^2`` and the bias variance ``q* - sw2 V(q*)`` of the activation that it reads, and
    orthogonal weights (of convolutions at the centre tap), so that all directions pass alike. The last layer, too. The
    first is scaled so that q* comes out, and so is one after a pool. Where q* does not last (GELU, SiLU: chi_q > 1 at
    small q*), the next larger one that does is taken; where there is none (softplus), the gain nearest to one.

    **Other networks** (residual, normalised, attention, functional activations) need ``x``. They are cut wherever all
    of the signal passes, and every block is brought to chi = 1 +- 0.01 in the order of the run: a layer of a chain gets
    new weights as above; the weights of a residual block are multiplied by one number, and the gains of its norms if
    that is not enough. What reads the data first is scaled to q* where no norm is in the network; what reads off the
    result is left as it is where there is a residual block. Costs some ten passes through the network a block.

    Frozen parameters (``requires_grad=False``), embeddings, bare parameters of containers and the slopes of ``PReLU``
    stay as they are; dropout is off meanwhile; buffers, modes, hooks and global generators are as before.

    Args:
        net: any module.
        x: a batch it takes, ``[N, ...]``, or a tuple of its arguments; the more like the data the better.
        q_star: the mean square of pre-activations. Small ones are nearly linear: gradients pass deepest.
        orthogonal: orthogonal weights; Gaussian ones otherwise.
        seed: of the weights, of the probes, and of whatever the network draws.

    Returns:
        What was done and what came of it; print it. Measured on x, or without x as theory says it.

    Raises:
        InvalidType: no module, no tensor, no number.
        InvalidValue: a network that theory does not know, and no x; one that cannot be tuned, or that is recurrent. It
            is then unchanged.

    Source: Schoenholz et al. 2017, "Deep information propagation", eqs. 3, 6; Pennington et al. 2017 and Xiao et al.
    2018 for orthogonal weights; He, Doshi & Gromov 2022, "AutoInit", for blocks.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    check_positive(q_star=q_star)
    check_flag(orthogonal=orthogonal)
    check_integer(0, seed=seed)
    refuse_lazy(net)
    _refuse_wrapped(net)
    args = _checked(x)
    layers = layers_of(net)
    if layers is None and args is None:
        raise InvalidValue(
            "net is no chain of Linear / Conv layers and activations, and only those are known to theory: "
            "give x, a batch of its input"
        )
    _refuse_recurrent(net)
    with quiet(net) as dropout, refusing_checkpoints("critical_init_"):
        if layers is not None and (args is None or len(args) == 1):
            draft, result = _by_theory(net, layers, args, q_star, orthogonal, seed)
        else:
            assert args is not None
            draft, result = _by_tuning(net, args, q_star, orthogonal, seed)
    draft.commit()
    return result.noting("dropout was off while measuring") if dropout else result


def _refuse_wrapped(net: nn.Module) -> None:
    """Refuses what cannot be run with other weights, or not be looked into."""
    for name, part in net.named_modules():
        where = f"module {name!r}" if name else "net"
        if isinstance(part, torch.jit.ScriptModule):
            raise InvalidType(f"{where} is scripted, and its layers take no hooks; initialise it before you script it")
        if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise InvalidType(f"{where} is a {type(part).__name__}; give the network inside it, its .module")
    if torch.is_inference_mode_enabled():
        raise InvalidValue("there are no gradients in torch.inference_mode(); call critical_init_ outside of it")


def _refuse_recurrent(net: nn.Module) -> None:
    for name, part in net.named_modules():
        if isinstance(part, nn.RNNBase | nn.RNNCellBase):
            where = f"layer {name!r}" if name else "net"
            raise InvalidValue(
                f"{where} ({type(part).__name__}) is recurrent, and the gain of a recurrence over time is none that a "
                "scale of its weights sets; give the parts of the network beside its recurrent layers, and those "
                "orthogonal recurrent weights (of an LSTM biases of one at the forget gate, too)"
            )


# ---- by theory


def _by_theory(
    net: nn.Module, layers: list[Layer], args: tuple[Any, ...] | None, asked: float, orthogonal: bool, seed: int
) -> tuple[Draft, Initialisation]:
    draft, generator = Draft(net, seed), torch.Generator().manual_seed(seed)
    x = None if args is None else args[0]
    q_star = length_of(layers, asked)
    said = by_theory(draft, layers, q_star, x, orthogonal=orthogonal, generator=generator)
    blocks = tuple(InitialisedBlock(each.name, each.q, each.chi, each.note) for each in said)
    names = dict.fromkeys(layer.moments.activation.name for layer in layers if not layer.first)
    how = f"by theory of {', '.join(names)}" if names else "by theory"
    return draft, Initialisation(blocks, q_star, asked, how, x is not None)


# ---- by tuning


def _by_tuning(
    net: nn.Module, args: tuple[Any, ...], asked: float, orthogonal: bool, seed: int
) -> tuple[Draft, Initialisation]:
    """The first q* from the one asked for at which lengths last; where none does, lengths come before gains."""
    refuse_fixed(net)
    reached: list[tuple[int, float]] = []
    lengths = (asked, *(q for q in _LENGTHS if q > asked))
    for steer in (STEER, _HARD):
        for q_star in lengths:
            draft = Draft(net, seed)
            tuner = Tuner(draft, args, seed, orthogonal, torch.Generator().manual_seed(seed), steer)
            blocks = segments_of(run(draft, args))
            if not blocks:
                raise InvalidValue("net has no layer with weights on the way from x to its output")
            done = _tuned(tuner, blocks, q_star)
            if len(done) == len(blocks):
                done = _again(tuner, done)
                lost = next((k for k, each in enumerate(done) if _drifts(each, done)), None)
                if lost is None and _spread(done) <= _SPREAD:
                    reference = done[0].reading.q
                    rows = tuple(_row(each) for each in done)
                    return draft, Initialisation(rows, reference, asked, "by Jacobian tuning", True)
            reached.append((len(done), q_star))
        lengths = (max(reached)[1],)
    raise InvalidValue(
        f"no q* from {asked:g} to {_LENGTHS[-1]:g} lasts in this network: with q* = {lengths[0]:g} the length is lost "
        f"after {max(reached)[0]} of {len(blocks)} blocks, at {blocks[max(reached)[0] - 1].name!r}; is a norm missing?"
        f"{_bare(net)}"
    )


def _tuned(tuner: Tuner, blocks: list[Segment], q_star: float) -> list[Tuned]:
    """The blocks tuned one after another, up to the first at which the length is lost."""
    chain = not any(block.knotted or block.norms for block in blocks)
    normed = any(block.norms for block in blocks)
    done: list[Tuned] = []
    seen: set[int] = set()
    for k, block in enumerate(blocks):
        parameters = {id(p) for part in (*block.weights, *block.norms) for p in own(part)}
        reference = done[0].reading.q if done else q_star
        if parameters & seen:
            each = Tuned(block, tuner.reading(block), "shares its weights with an earlier block")
        elif k == 0 and not block.knotted:
            each = tuner.stem(block, None if normed else q_star)
        elif k == len(blocks) - 1 and not chain and not block.knotted:
            each = Tuned(block, tuner.reading(block), "reads off the result: left as it is", judged=False)
        elif block.plain is not None:
            each = tuner.layer(block, reference)
        else:
            each = tuner.knot(block, reference if done else None)
        seen |= parameters
        done.append(each)
        if not (math.isfinite(each.reading.q) and math.isfinite(each.reading.chi)):
            raise InvalidValue(
                f"block {block.name!r}: q is {each.reading.q} and chi {each.reading.chi} on x; expected finite numbers"
            )
        if abs(math.log(each.scale)) > math.log(_OUT_OF_SCALE):
            does = "loses" if each.scale > 1 else "blows up"
            raise InvalidValue(
                f"block {block.name!r}: its weights would have to be scaled by {each.scale:.3g}, since what the "
                f"network does before it {does} the signal{_bare(tuner.draft.net)}; scale that by yourself first"
            )
        if _drifts(each, done) and k < len(blocks) - 1:
            break
    return done


def _bare(net: nn.Module) -> str:
    """The matrices that nobody tunes, in words."""
    names = [name for name, _ in bare_matrices(net)]
    shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f" (matrices that no module applies stay as they are: {shown})" if names else ""


def _again(tuner: Tuner, done: list[Tuned]) -> list[Tuned]:
    """The same blocks, all measured in one pass at the end."""
    found = run(tuner.draft, tuner.args)
    return [replace(each, reading=tuner.read(found, each.segment)) for each in done]


def _drifts(each: Tuned, done: list[Tuned]) -> bool:
    """Whether the length is lost: by a small factor in a chain, by a large one where the network's own code sets it."""
    first = done[0].reading.q
    far = abs(math.log(max(each.reading.q, 1e-300) / max(first, 1e-300)))
    plain = each.segment.plain is not None and each.judged and not any(b.segment.knotted for b in done)
    return far > math.log(BAND if plain else _LOST)


def _spread(done: list[Tuned]) -> float:
    """By how much a difference of length grows through the layers of a chain."""
    slopes = [each.reading.chi_q for each in done[1:] if each.segment.plain is not None]
    return math.exp(math.fsum(math.log(max(slope, 1e-3)) for slope in slopes))


def _row(each: Tuned) -> InitialisedBlock:
    return InitialisedBlock(each.segment.name, each.reading.q, each.reading.chi if each.judged else math.nan, each.note)


def _checked(x: Any) -> tuple[Any, ...] | None:
    if x is None:
        return None
    args = x if isinstance(x, tuple) else (x,)
    tensors = [leaf for arg in args for leaf in tree.leaves(arg) if isinstance(leaf, Tensor)]
    if not args or not isinstance(args[0], Tensor):
        raise InvalidType(
            f"x is {kind_of(x)}; expected a tensor [N, ...], or a tuple of arguments that begins with one"
        )
    for tensor in tensors:
        check_plain("tensors [N, ...]", x=tensor)
        if not tensor.numel():
            raise InvalidValue(f"x has shape {list(tensor.shape)}; expected at least one particle")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InvalidValue("x is not finite everywhere")
    return args

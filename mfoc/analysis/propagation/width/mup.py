"""The maximal-update parametrisation: which initial variances and learning rates keep a net alike at every width.

Of Tensor Programs V (Yang, Hu et al. 2022, arXiv:2203.03466) in the form of Table 3, which needs no multipliers in the
forward pass, so that any module stays as it is written: the role of a parameter, read off the shapes of two nets of
different widths, says how its initial variance and its learning rate go with its fan-in and fan-out.

    role      grows with width    initial variance    learning rate: SGD    Adam
    input     fan-out             constant            fan_out               constant
    hidden    both                1/fan_in            fan_out/fan_in        1/fan_in
    output    fan-in              1/fan_in^2          1/fan_in              1/fan_in

Biases, gains of norms and embeddings are input parameters with a fan-in of one. What the table says of the initial
variance of input weights, 1/fan_in, is constant, as their fan-in is. Where a weight is shared between the embedding
and the output, or the size of an attention head grows, a forward pass has to be changed (Table 8, section 5 of the
paper), which is not done here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.checks import check_choice, check_instance, check_non_negative, check_positive
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import refuse_lazy

ROLES = ("input", "hidden", "output", "fixed")
RULES = ("sgd", "adam")


@dataclass(frozen=True)
class Role:
    """What a parameter is in the table of muP, between a base net and another.

    Attributes:
        role: "input", "hidden", "output", or "fixed" where it does not grow with width.
        fan_in: by how much its fan-in is larger than in the base net.
        fan_out: the same of its fan-out.
    """

    role: str
    fan_in: float
    fan_out: float

    @property
    def scale(self) -> float:
        """What its root mean square at the start is, over that in the base net."""
        powers = {"hidden": -0.5, "output": -1.0}
        return float(self.fan_in ** powers.get(self.role, 0.0))

    def rate(self, rule: str) -> float:
        """What its learning rate is, over that of the base net: for "sgd", or for "adam" and what is like it."""
        return self.fan_out / self.fan_in if rule == "sgd" else 1 / self.fan_in


def roles_of(net: nn.Module, base_net: nn.Module, roles: Mapping[str, str] | None = None) -> dict[str, Role]:
    """The role of each parameter of ``net``, by name, read off its shape beside that in ``base_net``.

    Weights of dense layers, convolutions, attention and recurrent layers are ``[out, in, ...]``, those of embeddings
    and transposed convolutions ``[in, out, ...]``. Other parameters of two or more axes are taken for ``[out, in]``
    where their name has "weight" in it. Any other that grows along one axis is an input parameter, as is a positional
    embedding; along two, a hidden one ``[out, in]``.

    Args:
        net: the net.
        base_net: the same at the width to start from: its shapes are read, and nothing else.
        roles: name -> "input", "hidden", "output" or "fixed", where they are to be other than that.

    Raises:
        InvalidType: no modules.
        InvalidValue: nets that differ in more than their widths; a parameter that grows along three axes or more.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net, base_net=base_net)
    for one in (net, base_net):
        refuse_lazy(one)
    base = dict(base_net.named_parameters())
    own = dict(net.named_parameters())
    if base.keys() != own.keys():
        odd = min(base.keys() ^ own.keys())
        raise InvalidValue(
            f"parameter {odd!r} is in one of net and base_net alone; expected one architecture at two widths"
        )
    if roles is not None:
        check_instance(Mapping, "a dict, name of a parameter -> its role", roles=roles)
    given = dict(roles or {})
    for name, word in given.items():
        check_choice(*ROLES, **{f"roles[{name!r}]": word})
        if name not in own:
            raise InvalidValue(f"roles: the net has no parameter {name!r}; it has {', '.join(own)}")
    transposed, plain = (
        {id(p) for part in net.modules() if _is_transposed(part) is flag for p in part.parameters(recurse=False)}
        for flag in (True, False)
    )
    found = {
        name: _role(name, own[name].shape, base[name].shape, id(own[name]) in transposed, given.get(name))
        for name in own
    }
    for name, entry in found.items():
        if id(own[name]) in transposed & plain and entry.role != "fixed" and name not in given:
            raise InvalidValue(
                f"{name!r} is shared by an embedding and another layer: as the one it is an input, as the "
                "other an output parameter, which muP reconciles by a multiplier in the forward pass. Untie them, "
                "or say with roles= which it is to be"
            )
    return found


def _is_transposed(part: nn.Module) -> bool:
    """Whether the weights of a layer are ``[in, out, ...]``."""
    return isinstance(part, nn.Embedding | nn.EmbeddingBag) or bool(getattr(part, "transposed", False))


def _role(name: str, shape: torch.Size, base: torch.Size, transposed: bool, given: str | None) -> Role:
    if len(shape) != len(base):
        raise InvalidValue(
            f"parameter {name!r} has shape {list(shape)}, in base_net {list(base)}; expected equally many axes"
        )
    if 0 in shape or 0 in base:
        raise InvalidValue(f"parameter {name!r} is empty; expected at least one unit")
    ratios = [size / other for size, other in zip(shape, base, strict=True)]
    growing = [ratio for ratio in ratios if ratio != 1]
    if len(growing) > 2:
        raise InvalidValue(f"parameter {name!r} grows along {len(growing)} axes; muP knows matrices, which have two")
    if "weight" in name and len(shape) > 1:
        out, own = (1, 0) if transposed else (0, 1)
        fan_out, fan_in = ratios[out], ratios[own] * math.prod(ratios[2:])
    else:
        fan_out, fan_in = [*growing, 1.0, 1.0][:2]
    if given == "output" and fan_in == 1:  # the axis that grows is its fan-in after all
        fan_out, fan_in = 1.0, fan_out
    elif given == "input" and fan_out == 1:
        fan_out, fan_in = fan_in, 1.0
    elif given == "fixed":
        fan_out = fan_in = 1.0
    found = {(True, True): "hidden", (True, False): "input", (False, True): "output", (False, False): "fixed"}
    return Role(given or found[fan_out != 1, fan_in != 1], fan_in, fan_out)


def mup_groups(
    net: nn.Module,
    base_net: nn.Module,
    lr: float,
    optimizer: str = "adam",
    *,
    weight_decay: float | None = None,
    roles: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser of torch, each with its learning rate in muP.

    At the width of the base net each learning rate is ``lr``, so that what was tuned there is right at every width::

        base = make_net(128)
        net = mup_init_(make_net(4096), base)
        optimizer = torch.optim.Adam(mup_groups(net, base, lr=1e-3))

    Args:
        net: the net to train.
        base_net: the same at the width where ``lr`` was tuned: its shapes are read, and nothing else.
        lr: the learning rate of the base net.
        optimizer: "adam" for optimisers that normalise each entry of the gradient (Adam, AdamW, RMSprop, Adagrad,
            signs), "sgd" for those that are linear in it.
        weight_decay: that of the base net; divided where the learning rate is multiplied, since what decays in a step
            is the product of the two (Appendix B.3 of the paper).
        roles: name -> role, where it is to be another than the shapes say; see ``roles_of``.

    Returns:
        ``[{"params": [...], "lr": ...}, ...]``, parameters that require grad, one group for each learning rate.

    Raises:
        InvalidType: no modules, no numbers.
        InvalidValue: nets that differ in more than their widths; a learning rate that is not positive.

    Source: Yang, Hu et al. 2022, "Tensor Programs V", Table 3.
    """
    check_positive(lr=lr)
    check_choice(*RULES, optimizer=optimizer)
    check_non_negative(optional=True, weight_decay=weight_decay)
    groups: dict[float, dict[str, Any]] = {}
    found = roles_of(net, base_net, roles)
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = found[name].rate(optimizer)
        decay = {} if weight_decay is None else {"weight_decay": weight_decay / rate}
        groups.setdefault(rate, {"params": [], "lr": lr * rate, **decay})["params"].append(parameter)
    if not groups:
        raise InvalidValue("net has no parameter that requires grad; expected something to train")
    return list(groups.values())


def mup_init_(net: nn.Module, base_net: nn.Module, *, roles: Mapping[str, str] | None = None) -> nn.Module:
    """Rescales the fresh weights of ``net`` in place to the variances of muP, those of ``base_net`` at its width.

    Each parameter that grows with width is multiplied by the number that makes its root mean square that of the base
    net times the power of the fan-in that its role asks for. That is right whatever the net was made with: torch's
    default, Xavier's (which shrinks input weights), or one deviation for all. Zeros stay zeros.

    Args:
        net: the net, freshly made. Its weights change, and nothing else.
        base_net: the same at the width to start from, freshly made in the same way.
        roles: name -> role, where it is to be another than the shapes say; see ``roles_of``.

    Returns:
        The net.

    Raises:
        InvalidType: no modules.
        InvalidValue: nets that differ in more than their widths; weights that are not finite.

    Source: Yang, Hu et al. 2022, "Tensor Programs V", Table 3.
    """
    found = roles_of(net, base_net, roles)
    base_weights = dict(base_net.named_parameters())
    growing = [(name, own) for name, own in net.named_parameters() if found[name].role != "fixed"]
    for name, own in growing:
        if not (own.isfinite().all() and base_weights[name].isfinite().all()):
            raise InvalidValue(f"parameter {name!r} is not finite; expected freshly made nets")
    with torch.no_grad():
        for name, own in growing:
            if size := root_mean_square(own):
                own.mul_(root_mean_square(base_weights[name]) * found[name].scale / size)
    return net


def root_mean_square(*values: Tensor) -> float:
    """The root mean square over all entries of one or more tensors, in double precision where there is one."""
    if not all(isinstance(value, Tensor) for value in values):
        raise InvalidType("values: expected tensors")
    wide = [value.detach() if value.device.type == "mps" else value.detach().double() for value in values]
    count = sum(value.numel() for value in wide)
    return float((sum(float(value.abs().square().sum()) for value in wide) / max(count, 1)) ** 0.5)

"""The gradients of a network's outputs in its parameters, sample by sample, in the form that is cheapest for a kernel.

Layers that are known (``layers``) are run with their weights cut off, and their inputs and the gradients at their
outputs are kept. A parameter that the output still depends on is used in another way as well; it, and all that is not
known, is differentiated by ``vmap`` of vector-Jacobian products. So every parameter is met, and none twice.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from mfoc.analysis.kernel.layers import Factors, Rows, Share, Size, share, size
from mfoc.analysis.kernel.products import block
from mfoc.analysis.kernel.taps import (
    PROBED,
    Taps,
    apart,
    candidates,
    entries_of,
    fits,
    normal_like,
    own_parameters,
    plainly,
    slopes_at,
    stays_apart,
)
from mfoc.derivatives import gradients, reached
from mfoc.errors import InvalidValue
from mfoc.networks.inspection import trainable

logger = logging.getLogger(__name__)

_PROBED_OUTPUTS = 3  # by which it is seen that the shares add up


class Misfit(Exception):
    """A batch went through the layers in another way than the probe did."""


@dataclass(eq=False)
class Jacobians:
    """How the gradients of a network are taken.

    Attributes:
        net: a private copy of it.
        outputs: C, the entries of one sample's output.
        known: layers whose share is taken from their inputs and slopes, by name.
        others: the names of the parameters that are differentiated in the general way.
        sizes: what each known layer costs.
        rows: the known layers whose gradients are formed.
        vectorised: whether the general way goes through ``vmap``; seen when it first does not.
        routes: modules that are not torch's may send samples another way in every batch, as experts are chosen.
    """

    net: nn.Module
    outputs: int
    known: dict[str, nn.Module]
    others: list[str]
    sizes: dict[str, Size] = field(default_factory=dict)
    rows: dict[str, bool] = field(default_factory=dict)
    vectorised: bool = True
    routes: bool = True

    @classmethod
    def of(cls, net: nn.Module, x: Tensor, outputs: int) -> Jacobians:
        """Looks at how a few samples go through the network: which layers are known and treat them one by one."""
        few = x[torch.arange(PROBED, device=x.device) % len(x)]
        known = candidates(net)
        with plainly():
            out, calls = Taps(net).run(few, known)
            known = {name: known[name] for name in known if fits(calls[name])}
            out, calls = Taps(net).run(few, known)
            free = trainable(net)
            met = dict(zip(free, reached([out], list(free.values())), strict=True))
            elsewhere = {id(free[name]) for name in free if met[name]}
            known = {n: m for n, m in known.items() if not any(id(p) in elsewhere for p in own_parameters(m))}
            alone = apart(out.reshape(PROBED, -1), {n: calls[n] for n in known})
        known = {name: known[name] for name in known if alone[name]}
        covered = {id(p) for name in known for p in own_parameters(known[name])}
        with plainly():
            full = net(few)
        # A parameter that nothing depends on has no share: not looking at it spares a pass.
        alive = dict(zip(free, reached([full], list(free.values())), strict=True))
        others = [name for name, p in free.items() if alive[name] and id(p) not in covered]
        sizes = {name: size(known[name], entries_of(calls[name], PROBED)) for name in known}
        own = any(not type(part).__module__.startswith("torch.nn.") for part in net.modules())
        made = cls(net, outputs, known, others, sizes, routes=own)
        if made.agrees(few):
            return made
        logger.info("the shares of the layers do not add up: all parameters are differentiated in the general way")
        made = made.generally()
        if made.agrees(few):
            return made
        made.vectorised = False  # a module that torch.func cannot give other parameters, as one of TorchScript
        if made.agrees(few):
            return made
        raise InvalidValue(
            "the gradients of the samples one by one do not add up to those of the batch: net does something else when "
            "it is given one sample"
        )

    def generally(self) -> Jacobians:
        """The same gradients, of all parameters in the general way."""
        return Jacobians(self.net, self.outputs, {}, list(trainable(self.net)), vectorised=self.vectorised)

    def choose(self, samples: int, *, trace: bool) -> None:
        """Chooses where gradients are formed, for kernels with so many columns."""
        self.rows = {n: s.prefers_rows(self.outputs, samples, trace=trace) for n, s in self.sizes.items()}

    def numbers(self) -> int:
        """About how many numbers are held for one sample."""
        known = sum(each.numbers(self.outputs, rows=self.rows.get(name, True)) for name, each in self.sizes.items())
        free = dict(self.net.named_parameters())
        return known + 2 * self.outputs * sum(free[name].numel() for name in self.others) + self.outputs

    def shares(self, x: Tensor, most: int = 2**62, *, first: int | None = None) -> list[Share]:
        """The share of each known layer, and last that of all other parameters together.

        Args:
            x: samples ``[n, ...]``.
            most: about how many numbers may be held.
            first: the first so many outputs alone; all when None.

        Raises:
            Misfit: a layer was not called as it was in the probe; ``generally`` is right all the same.
        """
        outputs = self.outputs if first is None else first
        at_once = max(1, min(outputs, most * self.outputs // max(1, len(x) * self.numbers())))
        with plainly():
            found = self._known_shares(x, outputs, at_once) if self.known else []
            if self.others:
                found.append(Rows(self.general(x, self.others, outputs)))
        return found

    def _known_shares(self, x: Tensor, outputs: int, at_once: int) -> list[Share]:
        out, calls = Taps(self.net).run(x, self.known)
        for name, made in calls.items():
            entries = entries_of(made, len(x))
            if any(call.written or call.shape[0] % len(x) for call in made) or entries != self.sizes[name].entries:
                raise Misfit(f"layer {name!r} was called in another way than before")
        used = [name for name in self.known if calls[name]]
        met = [call for name in used for call in calls[name]]
        if not met or not out.requires_grad:
            return []
        out = out.reshape(len(x), -1)
        if self.routes and not stays_apart(out, met):
            raise Misfit("samples change places on their way")
        parts: list[list[Share]] = []
        for start in range(0, outputs, at_once):
            slopes = iter(slopes_at(out, met, range(start, min(start + at_once, outputs))))
            row = []
            for name in used:
                given = [(call.inputs, next(slopes)) for call in calls[name]]
                row.append(share(self.known[name], given, len(x), rows=self.rows.get(name, True)))
            parts.append(row)
        return [_beside(column) for column in zip(*parts, strict=True)]

    def general(self, x: Tensor, names: list[str], outputs: int) -> Tensor:
        """The gradients in some parameters, of the first outputs of each sample alone: ``[n, C, P]``."""
        if self.vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*performance drop.*")
                    return vectorised_rows(self.net, x, names, outputs)
            except Exception as error:  # whatever a module of the user's raises under vmap
                logger.debug("the network cannot be vectorised: %s", error)
                self.vectorised = False
        return looped_rows(self.net, x, names, outputs)

    def agrees(self, x: Tensor) -> bool:
        """Whether ||sum_i J_i^T v_i||, by one plain pass, is what the kernel of the probed samples says of it."""
        free = list(trainable(self.net).values())
        self.choose(len(x), trace=False)
        shares = self.shares(x, first=min(self.outputs, _PROBED_OUTPUTS))
        with plainly():
            out = self.net(x).reshape(len(x), -1)[:, :_PROBED_OUTPUTS]
            v = normal_like(out)
            slope = gradients(out, free, [v])
        theta = block(shares, shares, v.new_zeros(*out.shape, *out.shape), trace=False).flatten(2).flatten(0, 1)
        flat = v.flatten()
        given, said = sum(float(g.double().square().sum()) for g in slope), float(flat @ theta @ flat)
        allowed = 10 * torch.finfo(out.dtype).eps ** 0.5 * float(flat.abs() @ theta.abs() @ flat.abs())
        return abs(given - said) <= allowed + 1e-300 or given != given


def _beside(parts: Sequence[Share]) -> Share:
    """Shares of a layer for one output after another, together."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, Rows):
        return Rows(torch.cat([part.rows for part in parts if isinstance(part, Rows)], 1))
    return replace(first, slopes=torch.cat([part.slopes for part in parts if isinstance(part, Factors)], 1))


def vectorised_rows(net: nn.Module, x: Tensor, names: list[str], outputs: int) -> Tensor:
    """The gradients in some parameters by ``vmap``, ``[n, C, P]``."""
    single, weights = _alone(net, names, outputs)
    found = vmap(jacrev(single), in_dims=(None, 0))(weights, x)
    return torch.cat([found[name].reshape(*found[name].shape[:2], -1) for name in names], 2).detach()


def looped_rows(net: nn.Module, x: Tensor, names: list[str], outputs: int) -> Tensor:
    """The same by one plain backward pass for each output of each sample: slow, and asks nothing of the network."""
    parameters = dict(net.named_parameters())
    leaves = [parameters[name] for name in names]
    rows = []
    for n in range(len(x)):
        entries = net(x[n : n + 1]).reshape(-1)[:outputs]
        found = [gradients(entry, leaves, retain_graph=True) for entry in entries]
        rows.append(torch.stack([torch.cat([leaf.reshape(-1) for leaf in each]) for each in found]))
    return torch.stack(rows).detach()


def _alone(net: nn.Module, names: list[str], outputs: int) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """The first outputs ``[C]`` of one sample as a function of some parameters, and the values of those."""
    constants = {name: p.detach() for name, p in net.named_parameters()}
    weights = {name: constants.pop(name) for name in names}
    constants |= dict(net.named_buffers())

    def single(free: dict[str, Tensor], sample: Tensor) -> Tensor:
        found: Tensor = functional_call(net, {**constants, **free}, (sample[None],))
        return found.reshape(-1)[:outputs]

    return single, weights

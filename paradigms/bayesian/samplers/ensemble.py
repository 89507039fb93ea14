"""Particles as networks: an ensemble to predict with, from any sampler's draws of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_instance
from mfoc.networks.inspection import trainable
from paradigms.bayesian.laws.likelihoods import NOISE, Gaussian, Likelihood, likelihood_of


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks that differ in their weights, with a likelihood; make one with ``ensemble``, give it to ``predict``.

    Attributes:
        net: the network, in evaluation mode.
        weights: parameter name -> values ``[n, ...]``.
        likelihood: of an observation given an output.
        noise: each network's own scale of a Gaussian likelihood ``[n, ...]``, or None.
    """

    net: nn.Module
    weights: dict[str, Tensor]
    likelihood: Likelihood
    noise: Tensor | None = None

    def __repr__(self) -> str:
        return f"Ensemble({len(self)} of {type(self.net).__name__}, {type(self.likelihood).__name__} observations)"

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def outputs(self, x: Tensor, samples: int = 100, *, seed: int = 0) -> Any:
        """Outputs ``[S, B, ...]`` of all networks, or of ``samples`` of them, drawn without replacement, if fewer."""
        chosen = slice(None)
        if samples < len(self):
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
            chosen = order[:samples].to(next(iter(self.weights.values())).device)  # type: ignore[assignment]
        some = {name: value[chosen] for name, value in self.weights.items()}
        with torch.no_grad():
            found = torch.func.vmap(lambda weights: torch.func.functional_call(self.net, weights, (x,)))(some)
        if self.noise is None:
            return found
        scale = self.noise[chosen]
        axes = found.dim() - 1 - scale.dim()  # those of an observation that the scale does not have
        return found, scale.view(*scale.shape, *[1] * axes)


def ensemble(net: nn.Module, draws: Mapping[str, Tensor], *, likelihood: Any, noise: Any = None) -> Ensemble:
    """An ensemble from draws of a network's weights.

    Args:
        net: the network the draws are of; it is copied.
        draws: parameter name -> values ``[n, ...]``: the readout of ``langevin``, ``svgd`` or ``follmer`` on
            ``log_density(net, ...)``, or what NUTS found there.
        likelihood: as given to ``log_density``.
        noise: as given to ``log_density``; when a Gaussian's was learned it is among the draws, as "noise".

    Raises:
        InvalidType, InvalidValue: draws that are not of this network, or no likelihood.
    """
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    if not isinstance(draws, Mapping) or not all(isinstance(value, Tensor) for value in draws.values()):
        raise InvalidType(
            f"draws is a {type(draws).__name__}; expected a dict from parameter names to tensors [n, ...]"
        )
    made = likelihood_of(likelihood, noise)
    learned = isinstance(made, Gaussian) and made.noise is None
    own = trainable(net)
    wanted = {*own, *([NOISE] if learned else [])}
    if wanted != draws.keys():
        raise InvalidValue(f"draws holds {sorted(draws)}; this network and likelihood need {sorted(wanted)}")
    lengths = {len(value) for value in draws.values()}
    for name, parameter in own.items():
        if draws[name].shape[1:] != parameter.shape or len(lengths) != 1:
            raise InvalidValue(
                f"draws of {name!r} have shape {tuple(draws[name].shape)}; expected (n, {tuple(parameter.shape)}) with "
                "one n for all"
            )
    if lengths == {0}:
        raise InvalidValue("draws holds no draw; expected values [n, ...] with n of at least 1")
    scale = draws[NOISE].detach().clone() if learned else None
    weights = {name: draws[name].detach().clone() for name in own}
    return Ensemble(copy.deepcopy(net).eval(), weights, made, scale)

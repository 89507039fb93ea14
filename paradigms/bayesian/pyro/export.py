"""To and from Pyro: potentials for NUTS and HMC, particles for ``Predictive``, a network as a Pyro model.

The way in is ``log_density(pyro_model, data)``. The ways out:

    potential = to_potential(density)
    kernel = pyro.infer.NUTS(potential_fn=potential.potential_fn)
    mcmc = pyro.infer.MCMC(kernel, num_samples=1000, initial_params=potential.initial_params)
    mcmc.run()
    samples = potential.posterior(mcmc.get_samples())

    pyro.infer.Predictive(model, posterior_samples=density.named(x))(...)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, require
from mfoc.checks import check_integer
from paradigms.bayesian.density.density import LogDensity, log_density
from paradigms.bayesian.density.sources import NOISE
from paradigms.bayesian.laws.likelihoods import Categorical, Custom
from paradigms.bayesian.laws.priors import weight_law


@dataclass(frozen=True, eq=False)
class Potential:
    """What ``pyro.infer.NUTS`` and ``HMC`` take in place of a model.

    Attributes:
        potential_fn: named unconstrained parameters of one particle to minus the log density, a scalar.
        initial_params: where to start, by name; with a leading axis of chains when there are several.
        density: the density.
    """

    potential_fn: Callable[[Mapping[str, Tensor]], Tensor]
    initial_params: dict[str, Tensor]
    density: LogDensity

    def posterior(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Samples of the chain, name -> ``[n, ...]`` unconstrained, in the parameters' own terms."""
        return self.density.named(self.density.ravel(samples))


def to_potential(target: Any, data: Any = None, *, chains: int = 1, seed: int = 0, **options: Any) -> Potential:
    """A log density, or the cost of a control problem, as the potential of Pyro's HMC and NUTS.

    Args:
        target: a ``LogDensity``, a formulation with one (``langevin``, ``svgd``, ``follmer``), or anything that
            ``log_density`` takes: an ``mfoc.Problem`` with its particles has the potential sum_i cost_i(u) /
            temperature, its named parameters being the controls.
        data: see ``log_density``.
        chains: number of chains to start.
        seed: of where they start.
        **options: of ``log_density``: prior, temperature, likelihood, ...

    Raises:
        InvalidType, InvalidValue: see ``log_density``.
    """
    target = getattr(target, "density", target)
    density = target if isinstance(target, LogDensity) else log_density(target, data, **options)
    check_integer(1, chains=chains)
    start = density.check(density.initial(chains, seed))

    def potential_fn(parameters: Mapping[str, Tensor]) -> Tensor:
        x = torch.cat([parameters[name].reshape(-1) for name in density.shapes])[None]
        return -density(x)[0]

    return Potential(potential_fn, density.unravel(start if chains > 1 else start[0]), density)


def as_model(
    net: nn.Module, *, likelihood: Any, noise: float | None = None, prior: Any = None
) -> Callable[..., Tensor]:
    """A network with a likelihood and a prior as a Pyro model ``model(inputs, targets=None)``: that of ``log_density``.

    Its latents are named as the network's parameters (and "noise" where the scale is learned), so the particles of the
    density are its posterior samples: ``Predictive(as_model(net, ...), posterior_samples=density.named(x))(inputs)``.

    Args:
        net: the network, used in evaluation mode.
        likelihood: "gaussian" or "categorical".
        noise: see ``log_density``.
        prior: see ``log_density``.

    Returns:
        A model with the observed site "y"; it returns the network's output.

    Raises:
        InvalidValue: another likelihood.
        MissingExtra: pyro is not installed.
    """
    ppl = require("pyro", "bayes")
    dist = ppl.distributions
    if not isinstance(net, nn.Module):
        raise InvalidType(f"net is a {type(net).__name__}; expected a torch.nn.Module")
    if likelihood not in ("gaussian", "categorical"):
        raise InvalidValue(f"likelihood is {likelihood!r}; a Pyro model needs 'gaussian' or 'categorical'")
    law = weight_law(prior)
    net = copy.deepcopy(net).eval()
    shapes = {name: p.shape for name, p in net.named_parameters() if p.requires_grad}

    def weight(name: str, shape: torch.Size) -> Tensor:
        value: Tensor = ppl.sample(name, as_pyro(law, dist).expand(shape).to_event(len(shape)))
        return value

    def model(inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        weights = {name: weight(name, shape) for name, shape in shapes.items()}
        out: Tensor = torch.func.functional_call(net, weights, (inputs,))
        like = next(iter(weights.values()))
        scale = ppl.sample(NOISE, dist.LogNormal(like.new_zeros(()), 1.0)) if noise is None else noise
        if likelihood == "categorical":
            observed = dist.Categorical(logits=out)
        else:
            mean = out.squeeze(-1) if out.dim() > 1 and out.shape[-1] == 1 else out
            if targets is not None and targets.shape != mean.shape:
                targets = targets.reshape(mean.shape)
            observed = dist.Normal(mean, scale).to_event(mean.dim() - 1)
        with ppl.plate("data", len(inputs)):
            ppl.sample("y", observed, obs=targets)
        return out

    if likelihood == "categorical":
        noise = 1.0  # not used; there is no scale to learn
    return model


def pyro_model(posterior: Any) -> Any:
    """The network with its prior and likelihood as a Pyro module ``model(x, y=None)``.

    A batch of y counts for all N observations, as in the objective. A learned noise is a constant, at its solved value.
    """
    pyro = require("pyro", "bayes")
    dist, pnn = pyro.distributions, pyro.nn
    lifted = posterior.at_mean()
    pnn.module.to_pyro_module_(lifted)
    modules = dict(lifted.named_modules())
    for names, priors in zip(posterior.network.names, posterior.network.priors, strict=True):
        for key, full in names.items():
            owner, _, leaf = full.rpartition(".")
            shape = posterior.mean[full].shape
            prior = as_pyro(priors[key], dist).expand(shape).to_event(len(shape))
            setattr(modules[owner], leaf, pnn.PyroSample(prior))
    likelihood, size = posterior.likelihood, posterior.size
    learned = posterior.network.learns_noise

    class BayesianNetwork(pnn.PyroModule):  # type: ignore[misc, name-defined]
        """A network with random weights."""

        def __init__(self) -> None:
            super().__init__()
            self.net = lifted
            if learned:
                # A buffer, not a parameter: Pyro's store has one name for the parameters of all such models.
                self.register_buffer("noise", posterior.observation_noise)

        def forward(self, x: Tensor, y: Any = None) -> Any:
            """The output; y is observed where it is given."""
            output = self.net(x)
            scale = 1.0 if y is None else size / len(x)
            with pyro.poutine.scale(scale=scale), pyro.plate("data", len(x), dim=-1):
                _observe(pyro, dist, likelihood, output, y, self.noise if learned else None)
            return output

    return BayesianNetwork()


def _observe(pyro: Any, dist: Any, likelihood: Any, output: Any, y: Any, learned: Tensor | None) -> None:
    if isinstance(likelihood, Categorical):
        pyro.sample("obs", dist.Categorical(logits=output), obs=y)
    elif isinstance(likelihood, Custom):
        if y is not None:
            stacked = torch.utils._pytree.tree_map(lambda leaf: leaf.unsqueeze(0), (output, y))
            pyro.factor("obs", likelihood.log_prob(*stacked)[0])
    else:
        noise = learned if learned is not None else likelihood.noise.to(output)  # type: ignore[union-attr]
        pyro.sample("obs", dist.Normal(output, noise).to_event(output.dim() - 1), obs=y)


def as_pyro(prior: torch.distributions.Distribution, dist: Any) -> Any:
    """A distribution of torch as the one of that name in Pyro."""
    if hasattr(prior, "to_event"):
        return prior
    same = getattr(dist, type(prior).__name__)
    return same(**{key: getattr(prior, key) for key in prior.arg_constraints})

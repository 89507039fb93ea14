"""Variational inference as control: min over laws q of E_q[J(u)] + tau KL(q || prior)."""

from __future__ import annotations

from typing import Any

from torch import nn

from mfoc import InvalidValue
from mfoc.checks import check_callable, check_choice, check_flag, check_integer, check_positive
from mfoc.formulation import Formulation
from mfoc.networks.inspection import unwrapped
from paradigms.bayesian.laws.likelihoods import likelihood_of
from paradigms.bayesian.vi.draws import Settings
from paradigms.bayesian.vi.of_model import of_model
from paradigms.bayesian.vi.of_network import of_network
from paradigms.bayesian.vi.posterior import RandomNetwork, Stages
from paradigms.bayesian.vi.stages import ESTIMATORS


def variational(
    model: Any,
    data: Any,
    *,
    likelihood: Any = None,
    noise: Any = None,
    prior: Any = None,
    guide: Any = None,
    samples: int = 1,
    batch_size: int | None = None,
    tau: float | None = None,
    size: int | None = None,
    estimator: str = "weights",
    kl: str | None = None,
    stl: bool = False,
    init_scale: float = 0.1,
    stages: Stages | None = None,
    seed: int = 0,
) -> Formulation:
    """Variational inference: J = E_q[mean negative log likelihood] + tau KL(q || prior).

    With tau = 1/N, the default, J is -ELBO/N, minibatches included. The control is the law of the latents, a particle
    is one draw from it, and the noise it is made from comes with the particle (Kingma & Welling 2014, arXiv:1312.6114;
    Blundell et al. 2015, arXiv:1505.05424). Solve it with ``mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))``.

    Args:
        model: a network as ``mfoc.from_module`` takes it, whose weights become random; or a Pyro model, a function of
            the data (a PyroModule counts as one). Discrete latents that are marked ``infer={"enumerate": "parallel"}``
            (``pyro.infer.config_enumerate`` marks all) are summed out, as Pyro's TraceEnum_ELBO does.
        data: for a network what ``mfoc.population`` takes, inputs (of a network of several a tuple in their order, or a
            dict by their names) and observations; for a Pyro model the tuple of its arguments (a dict: its keyword
            arguments), in which tensors of leading axis N hold the observations.
        likelihood: of a network: "gaussian", "categorical", or a function (output, y) -> the negative log likelihood of
            each observation ``[N]``, as torch's losses are (``LogLikelihood(function)`` takes its log).
        noise: known standard deviation of a Gaussian likelihood, a number or a tensor ``[...]`` that broadcasts to an
            output; when None it is learned, one for each output.
        prior: of the weights of a network: a distribution (of Pyro or torch) for each weight, or a function
            (name, parameter) -> distribution; standard normal when None.
        guide: for a network only the mean-field Gaussian, ``AutoNormal`` (or None). For a Pyro model ``AutoNormal``
            (when None), ``AutoDiagonalNormal``, ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal``; or a
            point, without entropy: ``AutoDelta``, the mode of the density in the latents' own supports (MAP; as in
            Pyro, without the Jacobian of their coordinates), or ``AutoLaplaceApproximation``, the mode in unconstrained
            coordinates, at which ``readout(solution).laplace_approximation(*data)`` is the Gaussian with the curvature
            there. A class, a function model -> one of them, or one made for this model, whose settings are kept, and
            its parameters if it has been in use.
        samples: draws S in a step.
        batch_size: observations in a step; all of them when None.
        tau: the temperature; 1/N when None.
        size: N, where it cannot be read off the data.
        estimator: "weights", "local" (local reparametrisation, for networks whose random layers are linear ones on
            ``[N, d]``) or "flipout" (linear and convolutional layers).
        kl: "exact", in closed form where it is known (as Pyro's TraceMeanField_ELBO; the default for networks), or
            "sampled", log q - log p at the draw (as Pyro's Trace_ELBO; the default for Pyro models, where "exact" means
            the entropy of q; and with ``stl``).
        stl: "sticking the landing": log q is sampled, and differentiated along the draw only, not in its parameters,
            whose score has mean zero (Roeder, Wu & Duvenaud 2017, arXiv:1703.09194). J is that of ``kl="sampled"`` and
            the gradient's mean, too; its variance vanishes where q is the posterior (but with "flipout", which takes
            log q at other draws than the likelihood). For solvers that use gradients alone: second derivatives are not
            those of J, and ``formulation.certify`` takes them without ``stl``.
        init_scale: initial standard deviation of the weights of a network. A Pyro guide has its own.
        stages: of a network: see ``mfoc.from_module``. A weight that is used twice has one law, and both uses are in
            one stage.
        seed: of the batches and of the draws.

    Returns:
        A formulation. ``readout(solution)`` is, for a network, a ``NetworkPosterior``; for a Pyro model, a guide of the
        class asked for. ``mfoc.certify`` measures it on ``samples`` draws, each on all observations whatever the
        batches: give it the population of a formulation with many.

    Raises:
        InvalidType, InvalidValue: arguments that do not fit each other or the data, N that is not known, discrete
            latents that are not summed out, a log density that is not finite.
        MissingExtra: a Pyro model, and Pyro is not installed.
    """
    check_integer(1, samples=samples)
    check_integer(1, size=size, optional=True)
    check_integer(0, seed=seed)
    check_positive(tau=tau, optional=True)
    check_positive(init_scale=init_scale)
    check_choice(*ESTIMATORS, estimator=estimator)
    check_flag(stl=stl)
    if stl and kl == "exact":
        raise InvalidValue("stl=True drops the score of the sampled log q, and kl='exact' samples none; leave one out")
    if stl and estimator == "local":
        raise InvalidValue(
            "stl=True follows log q along a draw of the weights, and estimator='local' draws none: use 'weights' or "
            "'flipout', or leave stl out"
        )
    if kl is not None:
        check_choice("exact", "sampled", kl=kl)
    settings = Settings(samples=samples, batch_size=batch_size, tau=tau, size=size, kl=kl, stl=stl, seed=seed)
    if isinstance(model, nn.Module) and not _is_pyro(model):
        if likelihood is None:
            raise InvalidValue("likelihood is missing; a network needs 'gaussian', 'categorical' or a function")
        name = guide if isinstance(guide, str) else getattr(guide, "__name__", type(guide).__name__)
        if guide is not None and name not in ("AutoNormal", "AutoDiagonalNormal"):
            raise InvalidValue(
                f"guide is {name}; the weights of a network have a mean-field Gaussian law (AutoNormal). For another "
                "guide write the network as a Pyro model"
            )
        network = RandomNetwork(unwrapped(model), likelihood_of(likelihood, noise), prior, estimator, stages)
        return of_network(network, data, init_scale, settings)
    check_callable("a torch.nn.Module or a Pyro model", model=model)
    for name, value in {"likelihood": likelihood, "noise": noise, "prior": prior, "stages": stages}.items():
        if value is not None:
            raise InvalidValue(f"{name} was given with a Pyro model, which has its own; leave it out")
    if estimator != "weights":
        raise InvalidValue(f"estimator={estimator!r} is for networks; a Pyro model is drawn as its guide says")
    return of_model(model, data, guide, settings)


def _is_pyro(model: nn.Module) -> bool:
    """Whether a module is a Pyro model."""
    return any(kind.__module__ == "pyro.nn.module" and kind.__name__ == "PyroModule" for kind in type(model).__mro__)

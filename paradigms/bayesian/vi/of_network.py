"""Variational inference on the weights of a network, as a control problem.

The control of a stage is the law of its weights; a particle is one draw of the whole network, rolled out on the inputs
of the batch; the stage's share of tau KL(q || prior) is its running cost.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc import InvalidValue, tree
from mfoc.distributed import alone
from mfoc.formulation import Formulation
from mfoc.networks import MaskedDropout
from mfoc.networks.arguments import Arguments
from mfoc.networks.inspection import mixes, training_norms
from paradigms.bayesian.laws.likelihoods import Categorical, Gaussian, aligned
from paradigms.bayesian.laws.priors import divergence
from paradigms.bayesian.vi.draws import SHARE, LatentDraws, Settings, formulated
from paradigms.bayesian.vi.posterior import NetworkPosterior, RandomNetwork, observed
from paradigms.bayesian.vi.stages import Weights, drawn, first


class NetworkDraws(LatentDraws):
    """Particles that are draws of the network."""

    _source: mfoc.Population

    def __init__(self, source: mfoc.Population, settings: Settings, network: RandomNetwork) -> None:
        super().__init__(source, settings, first([u for u in network.base.controls if u]))
        self._network = network
        self._plans: dict[Any, Any] = {}  # a memo of shapes
        self._last: tuple[mfoc.Particles, Any, Any] | None = None  # of the batch that came last, seen by all draws

    def _cloud(self, batch: mfoc.Particles | None, key: int) -> mfoc.Particles:
        s, batch = self._samples, self._source.cloud() if batch is None else batch
        last = self._last  # read once: another thread may replace it
        if last is None or last[0] is not batch:  # one without minibatches is the same at each step
            views = [tree.map(lambda leaf: leaf.expand(s, *leaf.shape), part) for part in (batch.state, batch.data)]
            last = self._last = (batch, *views)
        _, x, y = last
        return mfoc.Particles(x, {"y": y, "noise": self._noise(batch.state, key)})

    def _own(self, cloud: mfoc.Particles, rows: Tensor) -> mfoc.Particles:
        def kept(name: str, leaf: Tensor) -> Tensor:
            """Noise, which but for that of weights is drawn for each observation."""
            return leaf if name == "weights" else leaf[:, rows.to(leaf.device)]

        def seen(leaf: Tensor) -> Tensor:
            """Of the batch, which all draws hold as one tensor."""
            return leaf[0][rows.to(leaf.device)].expand(self._samples, len(rows), *leaf.shape[2:])

        x, y = (tree.map(seen, part) for part in (cloud.state, cloud.data["y"]))
        noise = [{name: kept(name, leaf) for name, leaf in stage.items()} for stage in cloud.data["noise"]]
        return mfoc.Particles(x, {"y": y, "noise": noise})

    def _noise(self, x: Any, key: int) -> list[Weights]:
        generator, plan, like = torch.Generator().manual_seed(key), self._plan(x), self._like
        normals = [shape for stage in plan for shape in stage[0].values()]
        signs = [shape for stage in plan for shape in stage[1].values()]
        gauss = torch.randn(sum(map(math.prod, normals)), generator=generator, dtype=like.dtype, device="cpu")
        parts = _blocks(gauss, normals, like)
        if signs:
            flips = torch.empty(sum(map(math.prod, signs)), dtype=like.dtype, device="cpu")
            parts += _blocks(2 * flips.bernoulli_(0.5, generator=generator) - 1, signs, like)
        made = iter(parts)
        found = [{name: next(made) for name in stage[0]} for stage in plan]
        return [{**entry, **{name: next(made) for name in stage[1]}} for entry, stage in zip(found, plan, strict=True)]

    def _plan(self, x: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The shapes of the noise of each stage, for a batch of this shape."""
        known = tuple(leaf.shape for leaf in tree.leaves(x))
        if known not in self._plans:
            states = self._network.states(x)  # trees have no shape, and no layer that would ask for it
            shapes = [tuple(state.shape) if isinstance(state, Tensor) else () for state in states]
            self._plans[known] = [
                stage.noise(self._samples, shapes[t], shapes[t + 1]) for t, stage in enumerate(self._network.stages)
            ]
        return self._plans[known]  # type: ignore[no-any-return]


def _blocks(flat: Tensor, shapes: list[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    parts = torch.split(flat.to(like.device), list(map(math.prod, shapes)))
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def of_network(network: RandomNetwork, data: Any, init_scale: float, settings: Settings) -> Formulation:
    """Variational inference on a network; see ``variational``."""
    source = mfoc.population(data, batch_size=settings.batch_size, seed=settings.seed)
    n = source.size if settings.size is None else settings.size
    if n is None:
        raise InvalidValue("N is missing: data are drawn on demand, so pass size=N, the number of observations")
    with alone():  # a learned noise starts from it, on all ranks the same
        batch = source(0)
    check_data(network, batch, None if settings.batch_size is None else _observations(data))
    controls = with_noise(network, network.controls(init_scale), batch.state, batch.data)
    made = partial(problem_of, network, controls, 1 / n if settings.tau is None else settings.tau)
    exact = settings.kl != "sampled" and not settings.stl  # of a KL in closed form there is no score to leave out
    problem, whole = made(exact, stopped=settings.stl), made(False) if settings.stl else None
    example = tree.map(lambda leaf: leaf[:1], (batch.state, batch.data))
    draws = NetworkDraws(source, settings, network)
    return formulated(problem, draws, lambda solved: NetworkPosterior(network, solved, n, example), whole=whole)


def _observations(data: Any) -> Tensor | None:
    """All observations, where they are a tensor in memory."""
    if type(data) is torch.utils.data.TensorDataset:
        data = data.tensors
    y = data.data if isinstance(data, mfoc.Particles) else data[1] if isinstance(data, tuple | list) else None
    if not isinstance(y, Tensor | np.ndarray):
        return None
    found: Tensor = mfoc.population((torch.arange(len(y), device="cpu"), y))(0).data  # with labels widened
    return found


def problem_of(
    network: RandomNetwork, controls: list[Any], tau: float, exact: bool, *, stopped: bool = False
) -> mfoc.Problem:
    """Least over laws: E[mean negative log likelihood] + tau KL(q || prior), in closed form where known and ``exact``.

    The controls are the initial laws; with learned noise one more, of the noise. With ``stopped`` the parameters of
    log q are held, and its draw moves (Roeder et al. 2017, eq. 6).
    """
    stages = network.stages
    penalties = [
        divergence(priors, stage.split, u["loc"], exact) if priors else None
        for priors, stage, u in zip(network.priors, stages, controls, strict=False)
    ]
    for stage, names, penalty in zip(stages, network.names, penalties, strict=True):
        if penalty is not None and penalty[1] and stage.estimator == "local":
            raise InvalidValue(
                f"estimator='local' draws no weights, and the KL of {sorted(names.values())} needs them: use a normal "
                "prior with kl='exact', or estimator='flipout'"
            )

    like = first([u for u in controls if u])

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        return observed(x, u) if t == len(stages) else stages[t](x, u, z["noise"][t])

    def running_cost(t: int, x: Any, u: Any, z: Any) -> Tensor:
        leaf = first(x)
        penalty = penalties[t] if t < len(stages) else None
        if penalty is None:
            return leaf.new_zeros(len(leaf), dtype=like.dtype)  # inputs may be integers
        measure, looks = penalty
        draw = drawn(u, z["noise"][t]["weights"]) if looks else None
        if stopped:
            u = {name: value.detach() for name, value in u.items()}
        return (tau * measure(u["loc"], F.softplus(u["scale"]), draw)).expand(len(leaf))

    def terminal_cost(x: Any, z: Any) -> Tensor:
        cost = network.likelihood.cost(x, z["y"])
        return z[SHARE] * cost if SHARE in z else cost

    def affine(t: int) -> bool:
        return t < len(stages) and network.base.affine is not None and network.base.affine(t)

    return mfoc.Problem(dynamics, terminal_cost, controls, running_cost=running_cost, affine=affine)


def with_noise(network: RandomNetwork, controls: list[Any], x: Any, y: Tensor) -> list[Any]:
    """The controls with one more stage for a learned noise, which starts at the size of the initial residuals."""
    if not network.learns_noise:
        return controls
    with torch.no_grad():
        mean = network.states(x)[-1]
        size = (aligned(y, mean) - mean).square().mean(0).sqrt().clamp_min(1e-3)
        return [*controls, {"noise": size + torch.log(-torch.expm1(-size))}]


def _asks(part: nn.Module) -> bool:
    """Whether a stage cannot run without the data."""
    resting = isinstance(part, MaskedDropout) and not part.training
    return getattr(part, "takes_data", False) is True and "z" in Arguments.of(part).required and not resting


def check_data(network: RandomNetwork, batch: mfoc.Particles, observations: Tensor | None = None) -> None:
    """Refuses data that do not fit: the first batch, and the observations of all where they lie in memory."""
    if batch.data is None:
        raise InvalidValue("data holds inputs only; expected a pair (x, y), inputs and observations")
    for name, norm in training_norms(network.net):
        if mixes(norm) or norm.track_running_stats:
            kind = "batch" if mixes(norm) else "instance"
            raise InvalidValue(
                f"module {name!r} is {kind} norm in training mode, whose draws have no averages to predict with; call "
                ".eval() on it, or use a layer or group norm"
            )
    for name, part in network.parts:
        if _asks(part):
            raise InvalidValue(
                f"stage {name!r} ({type(part).__name__}) takes the data z, and draws predict from the inputs alone: "
                "give what it takes as one more input of the network (a tuple or dict), or call .eval() on a "
                "MaskedDropout"
            )
    nothing = dataclasses.replace(network.base, terminal_cost=lambda x, z: first(x).new_zeros(len(first(x))))
    nothing.validate(batch)
    with torch.no_grad():
        output = network.states(batch.state)[-1]
        network.likelihood.check(output, batch.data)
        if observations is not None and isinstance(network.likelihood, Gaussian | Categorical):
            shape = len(observations), *output.shape[1:]  # what is asked of outputs
            network.likelihood.check(output[:1].expand(shape), observations)

"""The variational information bottleneck as a control problem: information is a running cost.

    minimise  E[ loss(decoder(t), y) ] + beta E[ KL(q(t|x) || r(t)) ],   t = m(x) + s(x) noise,

(Alemi, Fischer, Dillon & Murphy 2017, arXiv:1612.00410). The layers of encoder and decoder are stages; between them
stands the one that draws t, whose running cost is beta KL. The noise comes with the particle, so that all are pure.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import tree
from mfoc.checks import check_choice, check_instance, check_integer, check_positive
from mfoc.errors import InvalidValue
from mfoc.networks.inspection import refuse_sharing
from mfoc.networks.losses import Loss
from mfoc.networks.problem import from_module, to_module
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.populations import Population, as_particles, population
from mfoc.problem import HasControls, Problem, controls_of
from mfoc.seeding import mixed_seed
from mfoc.streams import normals
from mfoc.tree import Tree

_Stages = Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class Rates:
    """The two sides of the trade-off, on a population.

    Attributes:
        rate: E KL(q(t|x) || r(t)) in nats, an upper bound on I(X;T).
        distortion: E loss. Of a negative log likelihood, H(Y) less this is a lower bound on I(T;Y).
    """

    rate: float
    distortion: float


@dataclass(frozen=True, eq=False)
class Code:
    """The stage between encoder and decoder: its state ``[N, k]`` or ``[N, 2 k]``, its draw, its divergence.

    Attributes:
        latent: the dimension k of t.
        noise: the variance of t given x, or None where the encoder's second half says it.
    """

    latent: int
    noise: float | None

    def draw(self, x: Tensor, z: Tree) -> Tensor:
        """The draw t = m + s noise ``[N, k]``."""
        mean, log_deviation = self._split(x)
        noise = z.get("noise") if isinstance(z, dict) else None
        if not isinstance(noise, Tensor) or noise.shape != mean.shape:
            found = tree.describe(noise) if noise is not None else "none"
            raise InvalidValue(
                f"the bottleneck found no noise that fits: {found}; expected data {{'y': ..., 'noise': standard "
                f"normals {tuple(mean.shape)}}}, as with_noise of mfoc.analysis.information gives it"
            )
        return mean + log_deviation.exp() * noise

    def divergence(self, x: Tensor, u: dict[str, Tensor]) -> Tensor:
        """KL(N(m, s^2) || r) ``[N]``, r standard normal or the normal that the control holds."""
        mean, log_deviation = self._split(x)
        log_ratio = 2 * log_deviation
        if u:
            mean = (mean - u["mean"]) * torch.exp(-u["log_variance"] / 2)
            log_ratio = log_ratio - u["log_variance"]
        return (log_ratio.exp() + mean.square() - 1 - log_ratio).sum(1) / 2

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the standard deviation, ``[N, k]`` each."""
        wanted = self.latent if self.noise is not None else 2 * self.latent
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != wanted:
            what = "the mean" if self.noise is not None else "mean and raw deviation, the softplus of which is taken"
            raise InvalidValue(f"the encoder returned {tree.describe(x)}; expected {what}: [N, {wanted}]")
        if self.noise is not None:
            return x, torch.full_like(x, math.log(self.noise) / 2)
        mean, raw = x.chunk(2, 1)
        # Far below 0 softplus is exp, to the last bit; further below, it would be 0 and its divergence infinite.
        return mean, torch.where(raw < -40, raw, F.softplus(raw.clamp_min(-40)).log())


@dataclass(frozen=True, eq=False, repr=False)
class InformationBottleneck(Problem[Any]):
    """A control problem whose running cost is the information that is let through; see ``information_bottleneck``.

    Attributes:
        beta: the price of a nat about the input.
        code: the stage that draws t.
        parts: encoder and decoder as they were given, each with its ``stages``.
        cut: the stage of the draw: the number of the encoder's stages.
    """

    _: KW_ONLY
    beta: float
    code: Code
    parts: tuple[tuple[nn.Module, _Stages | None], ...]
    cut: int

    def modules(self, solution: HasControls | Tree) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder with solved controls, ordinary modules; the encoder returns what the draw is made from.

        Raises:
            InvalidType, InvalidValue: controls of another problem.
        """
        controls = controls_of(solution)
        self.check_stages(controls)
        (encoder, first), (decoder, second) = self.parts
        return (
            to_module(encoder, list(controls[: self.cut]), stages=first),
            to_module(decoder, list(controls[self.cut + 1 :]), stages=second),
        )

    @torch.no_grad()
    def rates(self, solution: HasControls | Tree, source: Any) -> Rates:
        """Rate and distortion on a population: what J = distortion + beta rate is made of.

        Raises:
            InvalidType, InvalidValue: controls of another problem, or a population that is none of this one's.
        """
        particles = as_particles(source)
        self.validate(particles, controls_of(solution))
        path = rollout(self, solution, particles)
        # Not from the whole cost: of a low price, the share of it would be lost to rounding.
        rate = self.code.divergence(path.states[self.cut], controls_of(solution)[self.cut])
        distortion = self.terminal_cost(path.states[-1], particles.data)
        return Rates(float(rate.double().mean()), float(distortion.double().mean()))


def information_bottleneck(
    encoder: nn.Module,
    decoder: nn.Module,
    loss: Loss | nn.Module,
    *,
    beta: float,
    latent: int,
    noise: float | None = None,
    prior: str = "normal",
    encoder_stages: _Stages | None = None,
    decoder_stages: _Stages | None = None,
) -> InformationBottleneck:
    """The variational information bottleneck (Alemi et al. 2017, arXiv:1612.00410) as a control problem.

    J = E loss + beta E KL(q(t|x) || r(t)). It bounds E loss + beta I(X;T) from above, and is equal to it where r is the
    law of t. Tishby's trade-off, as ``gaussian_bottleneck`` has it, is min I(T;X) - b I(T;Y): the same with
    b = 1 / beta where the loss is a negative log likelihood, whose least mean is H(Y|T) = H(Y) - I(T;Y).

    Args:
        encoder: a network as ``mfoc.from_module`` takes it, from inputs to ``[N, 2 k]``: the mean of t and, through a
            softplus, its standard deviation; or to ``[N, k]``, the mean, where ``noise`` is given.
        decoder: a network from t ``[N, k]`` to what the loss takes.
        loss: ``loss(output, y) -> [N]``, or a torch loss such as ``F.cross_entropy``.
        beta: the price of a nat about the input, above 0.
        latent: the dimension k of t.
        noise: the variance of t given x, the same for all; None where the encoder says it.
        prior: what r is: "normal", the standard one, or "learned", a normal law of independent coordinates whose mean
            and log variance are the control of the stage that draws t.
        encoder_stages: see ``stages`` of ``mfoc.from_module``.
        decoder_stages: the same.

    Returns:
        A problem for any solver, on particles whose data are ``{"y": targets, "noise": standard normals [N, k]}``: see
        ``with_noise``. Its ``modules(solution)`` and ``rates(solution, population)`` read a solution.

    Raises:
        InvalidType: no modules, no loss.
        InvalidValue: as ``mfoc.from_module``; beta or noise that is not positive, another word for the prior, a
            parameter that encoder and decoder share.
    """
    check_positive(beta=beta)
    check_positive(noise=noise, optional=True)
    check_integer(1, latent=latent)
    check_choice("normal", "learned", prior=prior)
    first = from_module(encoder, loss, stages=encoder_stages)
    second = from_module(decoder, loss, stages=decoder_stages)
    refuse_sharing(nn.ModuleDict({"encoder": encoder, "decoder": decoder}))
    code, cut = Code(latent, noise), first.stages
    like = tree.tensors(first.controls)[0]
    free = {name: like.new_zeros(latent) for name in ("mean", "log_variance")} if prior == "learned" else {}

    def dynamics(t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        if t == cut:
            return code.draw(x, z)
        return first.dynamics(t, x, u, z) if t < cut else second.dynamics(t - cut - 1, x, u, z)

    def running_cost(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
        if t == cut:
            return beta * code.divergence(x, u)
        leaf = tree.leaves(x)[0]
        return torch.zeros(len(leaf), dtype=like.dtype, device=leaf.device)

    def terminal_cost(x: Tree, z: Tree) -> Tensor:
        if not isinstance(z, dict) or "y" not in z:
            raise InvalidValue(
                f"the data is {tree.describe(z)}; expected {{'y': targets, 'noise': standard normals}}, as "
                "mfoc.analysis.information.with_noise gives it"
            )
        return second.terminal_cost(x, z["y"])

    def of_part(what: str, t: int) -> Any:
        """What a part says of one of its stages; of the draw, nothing."""
        part, own = (first, t) if t < cut else (second, t - cut - 1)
        found = getattr(part, what)
        return None if t == cut or found is None else found(own)

    def kind(t: int) -> Hashable:
        return ("encoder" if t < cut else "decoder", of_part("kind", t)) if t != cut else "draw"

    return InformationBottleneck(
        dynamics,
        terminal_cost,
        [*first.controls, free, *second.controls],
        running_cost=running_cost,
        kind=kind,
        affine=lambda t: bool(of_part("affine", t)),
        interacting=first.interacting or second.interacting,
        beta=beta,
        code=code,
        parts=((encoder, encoder_stages), (decoder, decoder_stages)),
        cut=cut,
    )


def with_noise(source: Any, latent: int, *, batch_size: int | None = None, seed: int = 0) -> Population:
    """A population with fresh standard normals for the bottleneck in each step.

    Args:
        source: inputs and targets, as ``mfoc.population`` takes them (not drawn on demand: a function draws its noise
            itself). Data that is a dict stays as it is, and is given the noise; otherwise it becomes "y".
        latent: how many normals for each particle, the dimension k of t.
        batch_size: particles in a step; all of them when None.
        seed: of batches and noise; the noise of a particle is a function of it, of the step and of its index, so that
            batches and ranks do not change it.

    Raises:
        InvalidType, InvalidValue: as ``mfoc.population``; a source that is drawn on demand.
    """
    check_integer(1, latent=latent)
    check_integer(0, seed=seed)
    base = population(source, batch_size=batch_size, seed=seed)
    if base.size is None:
        raise InvalidValue(
            "source draws its particles on demand; let it put standard normals into data['noise'] itself"
        )
    return _Noisy(base, latent, seed)


class _Noisy(Population):
    def __init__(self, base: Population, latent: int, seed: int) -> None:
        assert base.size is not None
        self.size, self.batch_size, self.batches_per_epoch = base.size, base.batch_size, base.batches_per_epoch
        self._base, self._latent, self._seed = base, latent, seed

    @property
    def runs_user_code(self) -> bool:
        return self._base.runs_user_code

    def described(self) -> dict[str, Any]:
        return {"kind": "Noisy", "seed": self._seed, "latent": self._latent, "of": self._base.described()}

    def __call__(self, step: int) -> Particles:
        return self._noisy(self._base(step), mixed_seed(self._seed, step, 5))

    def fetch(self, index: Tensor, key: int) -> Particles:
        return self._noisy(self._base.fetch(index, key), mixed_seed(key, 7))

    def epoch(self) -> Iterator[Particles]:
        for batch in self._base.epoch():
            yield self._noisy(batch, mixed_seed(self._seed, 0, 6))

    def _noisy(self, batch: Particles, key: int) -> Particles:
        check_instance(Tensor, "a state that is one tensor [N, ...]", state=batch.state)
        if batch.data is None:
            raise InvalidValue("source has no targets; pass a pair (x, y)")
        kind = batch.state.dtype if batch.state.is_floating_point() else torch.get_default_dtype()
        index, device = batch.indices(), batch.state.device
        wide = torch.promote_types(kind, torch.float32)
        noise = normals(torch.tensor(key, device=device), index.to(device), self._latent, wide).to(kind)
        data = dict(batch.data) if isinstance(batch.data, dict) else {"y": batch.data}
        return Particles(batch.state, {**data, "noise": noise}, batch.index)

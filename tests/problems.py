"""A small catalogue of problems, some with exact answers: seeded, in float64. And how answers are compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc.tree import leaves
from tests.architectures import batch_norm_net, conv_net, mlp_net, seeded

D = torch.float64
Case = tuple[mfoc.Problem, mfoc.Particles]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=D)


def labels(n: int, classes: int) -> Tensor:
    return torch.arange(n) % classes


def mlp() -> Case:
    return mfoc.from_module(mlp_net(), F.cross_entropy), mfoc.Particles(normal(7, 3), labels(7, 2))


def conv() -> Case:
    return mfoc.from_module(conv_net(), F.cross_entropy), mfoc.Particles(normal(6, 1, 6, 6), labels(6, 3))


def linear_quadratic() -> Case:
    a, b = torch.eye(2, dtype=D) + 0.1 * normal(2, 2, seed=1), normal(2, 1, seed=2)
    problem = mfoc.Problem(
        lambda t, x, u, z: x @ (a.mT + u["K"].mT @ b.mT) + b[:, 0] * u["k"],
        lambda x, z: x.square().sum(1),
        [{"K": 0.1 * normal(1, 2, seed=3 + t), "k": normal(1, seed=9 + t)} for t in range(4)],
        running_cost=lambda t, x, u, z: 0.3 * x.square().sum(1) + 0.1 * (x @ u["K"].mT + u["k"]).square().sum(1),
        kind=lambda t: "step",
    )
    return problem, mfoc.Particles(normal(5, 2, seed=4))


def interacting() -> Case:
    def drift(t: float, x: Any, u: Any, z: Any) -> Any:
        return u * (x.mean(0) - x) + torch.tanh(x) * (1 + t)

    problem = mfoc.continuous(
        drift,
        lambda x, z: (x - z).square().sum(1) + (x - x.mean(0)).square().sum(1),
        [0.3 * normal(2, seed=5 + t) for t in range(3)],
        running_cost=lambda t, x, u, z: (x.var(0) * u).sum().expand(len(x)) + x.prod(1).sin(),
        scheme=mfoc.heun,
        interacting="batch",
    )
    return problem, mfoc.Particles(normal(6, 2, seed=1), normal(6, 2, seed=2))


def pytrees() -> Case:
    """States {"q", "nested": (v,), "token"} with an integer leaf, controls {"gain", "bias": [b]}."""

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        q, (v,), token = x["q"], x["nested"], x["token"]
        force = u["gain"][token] * torch.sin(q) + u["bias"][0]
        return {"q": q + 0.2 * v, "nested": (v + 0.2 * force,), "token": (token + 1) % 3}

    problem = mfoc.Problem(
        dynamics,
        lambda x, z: (x["q"] - z["goal"]).square().sum(1) + x["nested"][0].square().sum(1),
        [{"gain": normal(3, 1, seed=t), "bias": [normal(2, seed=20 + t)]} for t in range(3)],
        running_cost=lambda t, x, u, z: 0.1 * u["bias"][0].square().sum() + 0.2 * x["nested"][0].square().sum(1),
    )
    state = {"q": normal(5, 2, seed=1), "nested": (normal(5, 2, seed=2),), "token": torch.arange(5) % 3}
    return problem, mfoc.Particles(state, {"goal": normal(5, 2, seed=3)})


def tied() -> Case:
    problem = mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"].mT) + u["b"],
        lambda x, z: (x - z).square().sum(1),
        {"W": normal(2, 2, seed=1), "b": normal(2, seed=2)},
        running_cost=lambda t, x, u, z: (u["W"] @ u["b"]).square().sum() + x.square().sum(1),
        horizon=4,
        schedule=mfoc.tied,
        scheme=mfoc.rk4,
    )
    return problem, mfoc.Particles(normal(6, 2, seed=3), normal(6, 2, seed=4))


def batch_norm() -> Case:
    return mfoc.from_module(batch_norm_net(), F.cross_entropy), mfoc.Particles(normal(8, 3), labels(8, 2))


def decayed() -> Case:
    net = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 4), *(mfoc.networks.Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh())) for _ in range(3))
        )
    )
    problem = mfoc.from_module(net, nn.MSELoss(), running_cost=mfoc.weight_decay(0.1))
    return problem, mfoc.Particles(normal(7, 3), normal(7, 4, seed=1))


CATALOGUE: dict[str, Callable[[], Case]] = {
    f.__name__: f for f in (mlp, conv, linear_quadratic, interacting, pytrees, tied, batch_norm, decayed)
}
INTERACTING = ("interacting", "batch_norm")


# ---- problems with exact answers, beside those of the catalogue


def open_loop_lq(stages: int = 3, weight: float = 0.4) -> tuple[mfoc.Problem, mfoc.Particles, Tensor, float]:
    """x' = x + B u, cost weight u'u + |x_T|^2 with one shared u: everything about H is a closed form.

    Returns:
        The problem, a cloud, B ``[2, 2]`` and the weight. E dH/du = 2 weight u + B' E p, with p = 2 x_T at every stage.
    """
    b = normal(2, 2, seed=4)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u @ b.mT,
        lambda x, z: x.square().sum(1),
        [normal(2, seed=10 + t) for t in range(stages)],
        running_cost=lambda t, x, u, z: (weight * u.square().sum()).expand(len(x)),
    )
    return problem, mfoc.Particles(normal(40, 2, seed=5) + 1), b, weight


def swarm() -> Case:
    """Particles that follow their mean and shun crowds: the law by name. ``tests.oracles.games`` has it as numbers."""

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        return x + 0.3 * (torch.tanh(mfoc.mean(x) - x) + u * torch.cos(x) + mfoc.variance(x))

    def running_cost(t: int, x: Any, u: Any, z: Any) -> Tensor:
        spread: Tensor = ((x - mfoc.mean(x)).square() * mfoc.variance(x)).sum(1)
        effort: Tensor = 0.5 * u.square().sum()
        return effort + spread

    problem = mfoc.Problem(
        dynamics,
        lambda x, z: (x - 2 * mfoc.mean(x)).square().sum(1),
        [0.3 * normal(2, seed=5 + t) for t in range(4)],
        running_cost=running_cost,
        kind=lambda t: "step",
    )
    return problem, mfoc.Particles(normal(6, 2, seed=1) + 0.5)


def scalar_game(**changes: float) -> mfoc.lq.LinearQuadratic:
    """A scalar LQ problem in which the mean matters in dynamics and costs; ``changes`` are its numbers by name."""
    numbers = {"A": 0.7, "B": 0.5, "Q": 0.1, "R": 1.0, "QT": 0.2, "Abar": 0.5, "Qbar": 1.0, "S": 0.2, "QbarT": 1.5}
    numbers |= {"ST": -0.5, **changes}
    return discrete_lq({name: torch.tensor([[number]], dtype=D) for name, number in numbers.items()}, 4)


def li_chen_tai_e(stages: int = 20, step: float = 0.25, n: int = 100, seed: int = 1) -> Case:
    """Sine regression of Li, Chen, Tai, E (2018), sec. 5: a residual tanh network, started next to zero."""
    uniform = partial(_uniform, generator=generator(seed))
    x = torch.pi * uniform(n, 1)
    controls = [{"W": 0.005 * uniform(5, 5), "b": 0.005 * uniform(5)} for _ in range(stages)]

    def decay(t: float, x: Any, u: Any, z: Any) -> Tensor:
        size: Tensor = u["W"].square().sum() + u["b"].square().sum()
        return (1e-3 / (2 * step) * size).expand(len(x))

    problem = mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"].mT + u["b"]),
        lambda x, z: (x.sum(1) - z).square(),
        controls,
        running_cost=decay,
        T=stages * step,
        autonomous=True,
    )
    return problem, mfoc.Particles(x.repeat(1, 5), x[:, 0].sin())


def _uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(*shape, generator=generator, dtype=D) - 1


def lq_matrices(
    seed: int = 0, n: int = 3, m: int = 2, lead: tuple[int, ...] = (), full: bool = True
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Random matrices of a (mean-field) LQ problem.

    Args:
        seed: of the matrices.
        n: states.
        m: controls.
        lead: leading axes, those of a batch of problems.
        full: whether there are mean-field and cross terms.

    Returns:
        The matrices as ``LinearQuadratic`` names them, an initial mean ``[n]`` and an initial covariance ``[n, n]``.
    """
    rng = generator(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=rng, dtype=D)

    def weight(k: int) -> Tensor:
        x = draw(k, k)
        return x @ x.mT / k

    spec = {"A": 0.6 * draw(n, n), "B": draw(n, m), "Q": weight(n), "R": weight(m) + torch.eye(m, dtype=D)}
    spec |= {"QT": weight(n), "sigma": 0.5 * draw(n, 2)}
    if full:
        spec |= {"Abar": 0.3 * draw(n, n), "Bbar": 0.4 * draw(n, m), "Rbar": 0.3 * weight(m), "Qbar": weight(n)}
        spec |= {"QbarT": weight(n), "S": 0.7 * draw(n, n), "ST": 0.7 * draw(n, n)}
        spec |= {"cross": 0.1 * draw(n, m), "crossbar": 0.1 * draw(n, m)}
        spec["Q"] = spec["Q"] + 0.2 * torch.eye(n, dtype=D)
    start = draw(n)
    return spec, start, weight(n)


def discrete_lq(spec: dict[str, Any], horizon: int = 6, **more: Any) -> mfoc.lq.LinearQuadratic:
    """The problem of these matrices in discrete time."""
    return mfoc.lq.LinearQuadratic.discrete(**spec, horizon=horizon, **more)


def continuous_lq(spec: dict[str, Any], T: float = 1.5, steps: int = 40) -> mfoc.lq.LinearQuadratic:
    """The problem of these matrices in continuous time."""
    return mfoc.lq.LinearQuadratic.continuous(**spec, T=T, steps=steps)


# ---- comparisons


def same_bits(left: Any, right: Any) -> bool:
    """Whether two trees hold the same numbers, of the same shapes and dtypes."""
    return all(
        isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(leaves(left), leaves(right), strict=True)
    )


def distance(left: Any, right: Any) -> float:
    """Largest difference between the leaves of two trees, which must have the same shapes."""
    pairs = list(zip(leaves(left), leaves(right), strict=True))
    assert all(a.shape == b.shape for a, b in pairs), [(tuple(a.shape), tuple(b.shape)) for a, b in pairs]
    gaps = [(a - b).detach().abs().max() for a, b in pairs if a.numel()]
    return float(torch.stack([gap.double() for gap in gaps]).max())


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference between two tensors of one shape and dtype, relative to 1 + the size of what is expected."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return float(((found - expected).abs() / (1 + expected.abs())).detach().max())

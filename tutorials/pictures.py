"""The pictures of the README and of the documentation: one figure that tells the idea, and one that moves.

Run it by ``python tutorials/pictures.py [folder]``, or ``make pictures``; without a folder the pictures go beside this
file. Everything is seeded: it makes the same pictures each time. With ``MFOC_SMOKE`` set in the environment it takes a
few steps only, to see that everything runs.
"""

import math
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc import plot
from mfoc.drawing import clouds, intervals, lines
from mfoc.figures import INK, new_figure, tidy
from mfoc.networks import Residual

SMOKE = bool(os.environ.get("MFOC_SMOKE"))
STEPS = 2 if SMOKE else 250
BLOCKS = 4 if SMOKE else 12
TARGET = torch.tensor([2.2, 1.4], dtype=torch.float64)


def adam(lr: float) -> mfoc.Gradient:
    """Back-propagation with Adam: the gradient step on H."""
    return mfoc.Gradient(partial(torch.optim.Adam, lr=lr))


def main(folder: Path) -> None:
    """Makes every picture."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    problem, points = layers()
    solutions = solved(problem, points)
    best = min(solutions.values(), key=lambda one: one.value)
    figure = idea(problem, points, solutions)
    figure.savefig(folder / "idea.png", dpi=110, metadata={"Software": None})
    swarm, crowd = flock()
    steered = mfoc.solve(swarm, adam(lr=0.1), crowd, steps=STEPS)
    path = mfoc.rollout(swarm, steered, crowd)
    cloud, network = "a crowd, steered", "a network's layers separate two classes"
    plot.animate(
        {cloud: path, network: mfoc.rollout(problem, best, points)},
        folder / "moving.gif",
        labels={network: points.data},
        costates={cloud: mfoc.costates(swarm, steered, path, crowd)},
        decorate=decorate,
        frames=4 if SMOKE else 49,
    )


def decorate(title: str, axis) -> None:
    """What stays in the picture that moves: the target and the obstacle; the line that divides the classes."""
    if "crowd" in title:
        turn = torch.linspace(0, 2 * math.pi, 60)
        axis.fill(0.5 * turn.cos(), 0.5 * turn.sin(), color="#BBBBBB", zorder=1)
        axis.annotate("obstacle", (0, -0.62), ha="center", va="top", fontsize=8, color=INK)
        axis.plot(*TARGET.numpy()[:, None], "x", color=INK, markersize=11, markeredgewidth=2.5, zorder=4)
        axis.annotate("target", (2.2, 1.75), ha="center", fontsize=8, color=INK)
        below = {"xycoords": "axes fraction", "ha": "right", "fontsize": 8, "color": INK}
        axis.annotate("arrow: −E p, where the cost falls", (0.98, 0.03), **below)
    else:
        axis.axline((0, 0), slope=1, color=INK, linewidth=1, linestyle="--", zorder=1)
        axis.annotate("equal scores", (0.98, 0.9), xycoords="axes fraction", ha="right", fontsize=8, color=INK)


def moons(number: int) -> mfoc.Particles:
    """Two interleaved half circles around the origin: points `[N, 2]`, labels `[N]`."""
    generator = torch.Generator().manual_seed(0)
    angle = math.pi * torch.rand(number, generator=generator, dtype=torch.float64)
    label = torch.arange(number) % 2
    side = 1.0 - 2.0 * label
    points = torch.stack([side * angle.cos() + 0.5 * (label - 0.5) * 2, side * (angle.sin() - 0.25)], 1)
    noise = torch.randn(number, 2, generator=generator, dtype=torch.float64)
    return mfoc.Particles(1.2 * points + 0.12 * noise, label)


def layers() -> tuple[mfoc.Problem, mfoc.Particles]:
    """Twelve residual blocks in the plane, x + h W tanh(V x + b); the last state is the two class scores."""
    torch.manual_seed(1)

    def block() -> nn.Module:
        return Residual(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), 0.5)

    net = nn.Sequential(*(block() for _ in range(BLOCKS))).double()
    return mfoc.from_module(net, F.cross_entropy, running_cost=mfoc.weight_decay(2e-2)), moons(40 if SMOKE else 300)


def solved(problem: mfoc.Problem, points: mfoc.Particles) -> dict[str, mfoc.Solution]:
    """One problem, several solvers: only one argument changes."""
    solvers = {
        "SGD": mfoc.Gradient(partial(torch.optim.SGD, lr=0.3)),
        "Adam": adam(lr=0.02),
        "E-MSA": mfoc.EMSA(rho=1.0),
        "NewtonCG": mfoc.NewtonCG(),
    }
    second = {"E-MSA", "NewtonCG"}  # whose steps cost as much as many gradients
    steps = {name: min(STEPS, 60) if name in second else STEPS for name in solvers}
    return {name: mfoc.solve(problem, solver, points, steps=steps[name], tol=1e-4) for name, solver in solvers.items()}


def idea(problem: mfoc.Problem, points: mfoc.Particles, solutions: dict[str, mfoc.Solution]):
    """Problem, cloud, solvers, certificate: one figure."""
    best, solution = min(solutions.items(), key=lambda pair: pair[1].value)
    states = mfoc.rollout(problem, solution, points).states
    figure = new_figure(9.6, 6.6)
    heading, top, bottom = figure.subfigures(3, 1, height_ratios=(0.17, 1.0, 1.05))
    stages = [round(k * BLOCKS / 3) for k in range(4)]
    axes = list(top.subplots(1, len(stages)))
    clouds.snapshots(axes, clouds.view([states[t] for t in stages]), stages, BLOCKS, points.data)
    heading.text(
        0.5,
        0.5,
        r"$\mathrm{minimise}\;\; J(u) = \mathrm{E}\,[\,\sum_t L_t(x_t, u_t) + \Phi(x_T)\,]"
        r"\quad\mathrm{subject\;to}\;\; x_{t+1} = f_t(x_t, u_t)$",
        ha="center",
        va="center",
        fontsize=12,
    )
    beside, certified = bottom.subfigures(1, 2, width_ratios=(1.15, 2))
    left, (middle, right) = beside.subplots(), certified.subplots(1, 2)
    beside.suptitle("one problem, any solver", fontsize=11, color=INK)
    lines.draw(left, {name: lines.points(one, "value") for name, one in solutions.items()})
    left.set(xlabel="step", ylabel="objective J", yscale="log")
    left.set_xscale("symlog", linthresh=1)
    left.set_xlim(-0.3, STEPS * 1.3)
    tidy(left, "both")
    left.legend(frameon=False, fontsize=9, handlelength=3)
    found = [mfoc.certify(problem, one, points) for one in (problem, solution)]
    looks = [{"color": "#7A7A7A", "marker": "o"}, intervals.of_certificates([best])[0]]
    intervals.stages_on([middle, right], found, looks, ("residual", "curvature"))
    handles = [
        middle.plot([], [], linestyle="", label=name, **one)[0]
        for name, one in zip(("guess", best), looks, strict=True)
    ]
    certified.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    certified.suptitle("its certificate, by stage (an arrow: down to zero)", fontsize=11, color=INK)
    return figure


def flock() -> tuple[mfoc.Problem, mfoc.Particles]:
    """A crowd around an obstacle to a target, which keeps together: dx = A_t x + b_t + (mean - x), a law by name."""
    stages, dt = 24, 1 / 24

    def dynamics(t, x, u, z):
        return x + dt * (x @ u["A"].mT + u["b"] + 0.8 * (mfoc.mean(x) - x))

    def running_cost(t, x, u, z):
        effort = 0.02 * (u["A"].square().sum() + u["b"].square().sum())
        return dt * (effort + 12 * torch.exp(-x.square().sum(1) / 0.25))

    controls = [{"A": torch.zeros(2, 2).double(), "b": torch.tensor([3.0, 2.0]).double()} for _ in range(stages)]
    problem = mfoc.Problem(dynamics, lambda x, z: 4 * (x - TARGET).square().sum(1), controls, running_cost=running_cost)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(250, 2, generator=generator, dtype=torch.float64)
    return problem, mfoc.Particles(torch.tensor([-2.0, -1.0], dtype=torch.float64) + 0.55 * noise)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")

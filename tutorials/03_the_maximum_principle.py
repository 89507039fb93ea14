# %% [markdown]
# # The maximum principle at work
#
# Gradient methods use the Hamiltonian to first order. Pontryagin's principle says more: an optimal control *minimises*
#
#     E H_t(x_t, p_(t+1), u, z),   H_t(x, p, u, z) = L_t(x, u, z) + <p, f_t(x, u, z)>
#
# over u at every stage, with the states x and costates p (p_T = dPhi/dx, p_t = dH_t/dx) of its own trajectory. (With
# the opposite sign of p it is a maximum, hence the name.) This page uses it twice: as a solver, and as a certificate.
#
# The problem is the toy of Li, Chen, Tai and E, "Maximum principle based algorithms for deep learning", JMLR 18(165),
# 2018: fit sin on (-pi, pi). The input is repeated to five nodes, twenty residual layers x + 0.25 tanh(W x + b) move
# it, and the output is the sum of the nodes. The cost is the squared error plus 0.001 / 2 |u_t|^2 per layer.

# %%
import math
import os
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure

import mfoc
from mfoc import plot
from mfoc.minimisers import LBFGS

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

layers, h, number, decay = 20, 0.25, 100, 1e-3
generator = torch.Generator().manual_seed(1)


def uniform(*shape):
    return 2 * torch.rand(*shape, generator=generator) - 1


def cloud(inputs):
    """Inputs `[N]` as particles: the input on five nodes, and its sine as data."""
    return mfoc.Particles(inputs[:, None].repeat(1, 5), inputs.sin())


train = cloud(math.pi * uniform(number))
toy = mfoc.continuous(
    lambda t, x, u, z: torch.tanh(x @ u["W"].mT + u["b"]),
    lambda x, z: (x.sum(1) - z).square(),
    [{"W": 0.005 * uniform(5, 5), "b": 0.005 * uniform(5)} for _ in range(layers)],
    # A running cost of a continuous problem is a rate; divided by h it is a cost per layer.
    running_cost=lambda t, x, u, z: (decay / 2 / h * (u["W"].square().sum() + u["b"].square().sum())).expand(len(x)),
    T=layers * h,
    autonomous=True,  # all layers are the same function, so a solver may minimise all Hamiltonians in one batch
)

# %% [markdown]
# ## Successive approximations
#
# The basic method (MSA) takes the principle at its word: run forward for x, backward for p, replace every u_t by a
# minimiser of E H_t with x and p frozen, repeat. But the new control has other states and costates than those it was
# computed for. E-MSA adds that infeasibility to what is minimised,
#
#     H_t + rho/2 |x_(t+1) - f_t(x_t, u)|^2 + rho'/2 |p_t - dH_t/dx (x_t, p_(t+1), u)|^2     (per particle, then E)
#
# The paper uses rho = 1 for sums over N samples, with costates of size 1/N. Here expectations are means and costates
# are those of one particle, so the same weights read rho = N, rho' = 1/N. By default the library picks the weights
# itself: it takes the first from the problem, adds a penalty on the step, takes a step that does not lower J enough
# back and repeats it with three times the weights; an accepted one lowers them by three tenths.
#
# SGD and Adam have the best learning rates of a small grid (by J at the end of the run), so they are no straw men.

# %%
contestants = {
    "SGD": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.03)), 900),
    "Adam": (mfoc.Gradient(partial(torch.optim.Adam, lr=0.02)), 900),
    "MSA": (mfoc.MSA(), 40),
    "E-MSA, rho of the paper": (mfoc.EMSA(rho=number, costate_rho=1 / number, inner=LBFGS(), adaptive=False), 120),
    "E-MSA, adaptive": (mfoc.EMSA(), 200),
}
solutions = {}
for name, (solver, steps) in contestants.items():
    mfoc.solve(toy, solver, train, steps=1)  # what PyTorch loads on first use is not to be timed
    solutions[name] = mfoc.solve(toy, solver, train, steps=max(2, steps // 60) if SMOKE else steps)


def curve(solution):
    """J after k steps, and the seconds they took, for k = 0, 1, ..."""
    values = [record["value"] for record in solution.history] + [solution.value]
    seconds = [0.0] + [record["seconds"] for record in solution.history]
    return values, seconds


def reached(solution, level):
    """When J is first at most the level: steps and seconds."""
    values, seconds = curve(solution)
    first = next((k for k, value in enumerate(values) if value <= level), None)
    return "never" if first is None else f"{first} steps, {seconds[first]:.2f} s"


levels = (0.5, 0.1, 0.03)
print(f"{'':24s} {'steps':>6s} {'final J':>9s} {'ms a step':>10s}" + "".join(f"{f'J <= {j}':>20s}" for j in levels))
for name, solution in solutions.items():
    pace = 1000 * solution.history[-1]["seconds"] / len(solution.history)
    row = "".join(f"{reached(solution, level):>20s}" for level in levels)
    print(f"{name:24s} {solution.last.step:6d} {solution.value:9.4f} {pace:10.1f}{row}")

# %%
figure = Figure(figsize=(12, 4.6), layout="constrained", dpi=120)
left, right = figure.subplots(1, 2, sharey=True)
for (name, solution), color in zip(solutions.items(), plot.COLORS, strict=False):
    values, seconds = curve(solution)
    style = {"color": color, "linewidth": 1.0 if name == "MSA" else 1.8, "label": name}
    left.plot(range(1, len(values)), values[1:], **style)
    right.plot(seconds[1:], values[1:], **style)
left.set(xscale="log", yscale="log", xlabel="step", ylabel="objective J", title="Per step")
right.set(xscale="log", yscale="log", xlabel="wall time [s], one thread", title="Per second")
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#dddddd", linewidth=0.6)
handles, names = left.get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
figure.savefig(FIGURES / "03_objective.png")
figure

# %% [markdown]
# MSA is thrown about and never settles: little but the weight decay bounds its Hamiltonians from below, so their
# minimisers are far away, where the frozen states mean nothing. E-MSA gets to a given J in far fewer steps than SGD
# and Adam. What it costs is in the table, in milliseconds a step: a forward and a backward sweep, then tens of
# evaluations of all the Hamiltonians. So compare the right panel before you choose: the lead shrinks, and given time
# the tuned gradient methods get as low. In favour of E-MSA: no learning rate to tune, and stages that are
# minimised independently of one another. Against it: it works on the full population, where gradients would
# do with small batches.
#
# With a fixed rho the objective may jump up where the penalty is momentarily too weak. With adaptive weights it cannot,
# on a fixed population.

# %%
for name in ("E-MSA, rho of the paper", "E-MSA, adaptive"):
    values, _ = curve(solutions[name])
    rises = sum(later > earlier for earlier, later in pairwise(values))
    print(f"{name}: J rose in {rises} of {len(values) - 1} steps")

# %% [markdown]
# The fits. J is the squared error on the samples plus the weight decay, printed apart, since solvers trade one for
# the other; the error in the titles is on an even grid, which reaches farther out than the samples.

# %%
grid = torch.linspace(-math.pi, math.pi, 201)


def output(controls):
    return mfoc.rollout(toy, controls, cloud(grid)).states[-1].sum(1)


figure = Figure(figsize=(12, 3.6), layout="constrained", dpi=120)
shown = ("MSA", "Adam", "E-MSA, adaptive")
for axis, name in zip(figure.subplots(1, 3, sharey=True), shown, strict=True):
    color = plot.COLORS[list(solutions).index(name)]
    axis.plot(grid, output(toy.controls), color="#999999", linewidth=1.2, label="initial guess")
    axis.plot(grid, output(solutions[name].controls), color=color, linewidth=2.6, label="fit")
    axis.plot(grid, grid.sin(), color="black", linestyle="--", linewidth=1, label="sin")
    error = (output(solutions[name].controls) - grid.sin()).square().mean().sqrt()
    penalty = decay / 2 * sum(u["W"].square().sum() + u["b"].square().sum() for u in solutions[name].controls)
    print(f"{name:20s} J = {solutions[name].value - float(penalty):.4f} + {float(penalty):.4f} (weight decay)")
    axis.set(xlabel="input", ylim=(-2.2, 2.2), title=f"{name}: r.m.s. error {float(error):.2g}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", fontsize=9)
figure.axes[0].set_ylabel("output (sum of the nodes)")
figure.savefig(FIGURES / "03_fits.png")
figure

# %% [markdown]
# ## The certificate
#
# A small J says that a solution is good, not that it cannot be improved. `certify` says what can be said, in a
# sentence, and prints what it rests on. At every stage, with the states and costates of the controls it is given:
#
# - **residual** |E dH_t/du| = |dJ/du_t|: zero at a stationary point, and small against its **scale**, the slope at
#   controls about as far off as these are from zero. Every gradient method aims at this.
# - **gap** E H_t(u_t) - min_u E H_t(u): how much lower the Hamiltonian of the stage can be made. A minimiser looks for
#   it from several starts, so it is a lower bound. The residual looks at u_t only; the gap also sees what lies farther
#   away. Where one is found, J is rolled out with the control it points to, and counts if it is lower.
# - **curvature**: the smallest eigenvalue of E d2H_t/du2.
#
# And for all controls together the smallest eigenvalue of the Hessian of J, without which a saddle is no minimum.
#
# The value is that on these particles. The interval in brackets is about the *population* they are drawn from: other
# data would have their stationary point elsewhere, so on few particles a residual of zero still leaves the population's
# open. Where the intervals allow no conclusion, the verdict says so, and what holds on the particles given.

# %%
candidates = {
    "initial guess": toy.controls,
    "Adam": solutions["Adam"].controls,
    "E-MSA, adaptive": solutions["E-MSA, adaptive"].controls,
}
effort = {"lanczos": 5, "groups": 4, "inner": LBFGS(steps=5)} if SMOKE else {}
certificates = {name: mfoc.certify(toy, controls, train, **effort) for name, controls in candidates.items()}
for name, certificate in certificates.items():
    print(f"\n{name}\n{certificate}")

# %%
figure = plot.certificate(*certificates.values(), names=list(certificates))
figure.set_size_inches(14, 4.2)
for panel in figure.axes:
    panel.set_xticks(range(0, layers, 5), range(0, layers, 5))
figure.axes[2].set_yscale("symlog", linthresh=1e-3)
figure.savefig(FIGURES / "03_certificate.png")
figure

# %% [markdown]
# The initial guess fails at every stage alike. The two solutions have residuals and gaps smaller by orders of
# magnitude. Can what is left be told from sampling noise? Count the stages whose interval excludes zero; at 95 %
# about one stage in twenty does so by chance.

# %%
for name, certificate in certificates.items():
    stages = certificate.stages
    print(
        f"{name}: total residual {certificate.residual:.2g}, total gap {certificate.gap:.2g}; of {len(stages)} stages "
        f"{sum(s.gap.low > 0 for s in stages)} have an interval of the gap above zero, "
        f"{sum(s.curvature.high < 0 for s in stages)} one of the curvature below zero"
    )

# %% [markdown]
# ### What the principle does not say in discrete time
#
# In continuous time a minimiser of J minimises the Hamiltonian. In discrete time it need only make it stationary. One
# stage, one particle, started at 0, makes the difference plain: f(u) = (u, -u^2 / 2), Phi(a, b) = a^2 + b. Then
# J(u) = u^2 / 2 has its minimum at 0, but there p = (0, 1), and H(u) = -u^2 / 2 has a *maximum*.

# %%
one_stage = mfoc.Problem(
    lambda t, x, u, z: torch.stack([x[:, 0] + u, x[:, 1] - u**2 / 2], 1),
    lambda x, z: x[:, 0] ** 2 + x[:, 1],
    [torch.zeros(())],
)
origin = torch.zeros(1, 2)
print(mfoc.certify(one_stage, one_stage.controls, origin, **effort))
nearby = replace(one_stage, controls=[torch.tensor(0.1)])
for name, solver in (("Gradient", mfoc.Gradient(partial(torch.optim.SGD, lr=0.5))), ("MSA", mfoc.MSA())):
    solution = mfoc.solve(nearby, solver, origin, steps=20)
    print(f"{name:8s} from u = 0.1: u = {float(solution.controls[0]):.3g}, J = {solution.value:.3g}")

# %% [markdown]
# The gradient finds the minimum of J, MSA runs away from it. The certificate shows the gap and the negative curvature
# of H, but condemns nothing for them: with the control that the gap points to J is not lower, and the Hessian of J is
# positive.
#
# So the residual and the Hessian of J are decisive for any network, while a negative curvature or a positive gap of H
# at a good solution is first of all a statement about the principle. The two notions meet as the layers become small
# steps: with f_t = x + h b(x, u), and running costs in proportion to h, H_t depends on u at order h, and what it leaves
# out of J (the curvature of the cost-to-go) is of order h^2. For a residual network the certificate can be read up to
# that order. Not where the control enters a diffusion, however small the steps, nor for weights that stages share:
# there the certificate completes H by Peng's second-order adjoint, or leaves it out.

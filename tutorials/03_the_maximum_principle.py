# %% [markdown]
# # The maximum principle at work
#
# After this lesson you can solve a problem by Pontryagin's principle (MSA and E-MSA), compare solvers by step and by
# second, and read the certificate that says what is known of a solution. It is for those who know the costate of the
# second lesson. It runs for about a minute.
#
# ## The equation
#
# Gradient methods use the Hamiltonian to first order. Pontryagin's principle says more: on its own states $x_t$ and
# costates $p_t$, an optimal control *minimises*
#
# $$ E \; H_t(x_t, p_{t+1}, u, z), \qquad H_t(x, p, u, z) = L_t(x, u, z) + \langle p, f_t(x, u, z) \rangle $$
#
# over $u$ at every stage. (With the opposite sign of $p$ it is a maximum, hence the name.)
#
# ## A toy with twenty layers
#
# The problem is that of Li, Chen, Tai and E, "Maximum principle based algorithms for deep learning", JMLR 18(165),
# 2018: fit a sine. The input is repeated to five nodes, twenty residual layers $x + h \tanh(W x + b)$ move it, and the
# output is the sum of the nodes. The cost is the squared error, plus a little weight decay.

# %%
import math
import os
from functools import partial
from pathlib import Path

import torch

import mfoc
from mfoc import plot
from mfoc.figures import INK, look, new_axes
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
    # The running cost of a continuous problem is a rate; divided by h it is a cost per layer.
    running_cost=lambda t, x, u, z: (decay / 2 / h * (u["W"].square().sum() + u["b"].square().sum())).expand(len(x)),
    T=layers * h,
    autonomous=True,  # all layers are one function, so a solver may minimise all Hamiltonians in one batch
)

# %% [markdown]
# ## Successive approximations
#
# MSA takes the principle at its word: run forward for $x$ and backward for $p$, replace every $u_t$ by a minimiser of
# $E H_t$ with both held, repeat. But the new control has other states and costates than those it was computed for.
# E-MSA adds that to what it minimises:
#
# $$ H_t + \frac{\rho}{2} |x_{t+1} - f_t(x_t, u)|^2 + \frac{\rho'}{2} |p_t - \partial H_t / \partial x|^2 $$
#
# `EMSA()` picks its weights itself: a step that does not lower J enough is taken back and repeated with larger ones.
# SGD and Adam have the best learning rates of a small grid, so they are no straw men.

# %%
contestants = {
    "SGD": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.03)), 600),
    "Adam": (mfoc.Gradient(partial(torch.optim.Adam, lr=0.02)), 600),
    "MSA": (mfoc.MSA(), 20),
    "E-MSA": (mfoc.EMSA(), 150),
}
solutions, level = {}, 0.03
for name, (solver, steps) in contestants.items():
    mfoc.solve(toy, solver, train, steps=1)  # what PyTorch loads on first use is not to be timed
    solution = solutions[name] = mfoc.solve(toy, solver, train, steps=max(2, steps // 40) if SMOKE else steps)
    first = next((record for record in solution.history if record["value"] <= level), None)
    reached = f"at step {first['step']}, after {first['seconds']:.1f} s" if first else "never"
    print(f"{name:5s} {solution.last.step:4d} steps   J {solution.value:8.4f}   J <= {level}: {reached}")

# %%
figure = plot.solutions(solutions)
figure.savefig(FIGURES / "03_objective.png")
figure

# %% [markdown]
# MSA is thrown about and never settles: little but the weight decay bounds its Hamiltonians from below, so their
# minimisers are far away, where the frozen states mean nothing. E-MSA needs far fewer steps than SGD and Adam to a
# given J. Each step costs more: tens of evaluations of all Hamiltonians. So look at the lower panels before you choose.
# For E-MSA: no learning rate to tune. Against it: it works on the full population, where gradients make do with small
# batches.

# %%
grid = torch.linspace(-math.pi, math.pi, 201)
figure, panels = new_axes(11, 3.4, 3)
for axis, name in zip(panels, ("MSA", "Adam", "E-MSA"), strict=True):
    fit = mfoc.rollout(toy, solutions[name], cloud(grid)).states[-1].sum(1)
    error = float((fit - grid.sin()).square().mean().sqrt())
    axis.plot(grid, fit, color=look(name)["color"], linewidth=3, label=name)
    axis.plot(grid, grid.sin(), color=INK, linestyle="--", linewidth=1.2, label="sine")
    axis.set(xlabel="input", ylim=(-2.2, 2.2), title=f"r.m.s. error {error:.2g}")
    axis.legend(frameon=False, loc="upper left")
panels[0].set_ylabel("output (sum of the nodes)")
figure.savefig(FIGURES / "03_fits.png")
figure

# %% [markdown]
# ## The certificate
#
# A small J says that a solution is good, not that it cannot be improved. `certify` says what can be said. At every
# stage, with the states and costates of the controls it is given:
#
# - **residual** $|E \, \partial H_t / \partial u|$: zero at a stationary point. Every gradient method aims at this.
# - **gap** $E H_t(u_t) - \min_u E H_t(u)$: how much lower the Hamiltonian can be made. It also sees what lies far away.
# - **curvature**: the smallest eigenvalue of $E \, \partial^2 H_t / \partial u^2$.
#
# And for all controls together the smallest eigenvalue of the Hessian of J, without which a saddle is no minimum.
# Values are of these particles. Intervals are of the *population* they are drawn from: other data would have its
# stationary point elsewhere. `print(certificate)` shows all of it; `verdict` is the conclusion, in a sentence.

# %%
effort = {"lanczos": 5, "groups": 4, "inner": LBFGS(steps=5)} if SMOKE else {}
candidates = {"initial guess": toy, "Adam": solutions["Adam"], "E-MSA": solutions["E-MSA"]}
certificates = {name: mfoc.certify(toy, controls, train, **effort) for name, controls in candidates.items()}
for name, certificate in certificates.items():
    print(f"{name}: total residual {certificate.residual:.2g}, total gap {certificate.gap:.2g}")
    print(f"    {certificate.verdict}")

# %%
figure = plot.certificate(*certificates.values(), names=list(certificates))
figure.savefig(FIGURES / "03_certificate.png")
figure

# %% [markdown]
# The initial guess fails at every stage alike. The two solutions have residuals and gaps that are smaller by orders of
# magnitude. On these particles each still has a direction in which J falls: Adam's stands out in the right panel, that
# of E-MSA hardly. Whether what is left is a fault of the solution or of a sample this small, the intervals cannot
# tell, and the verdicts say so.
#
# ## What the principle does not say
#
# In continuous time a minimiser of J minimises the Hamiltonian. In discrete time it need only make it stationary. One
# stage and one particle, started at 0, make the difference plain:
#
# $$ f(u) = (u, -u^2 / 2), \qquad \Phi(a, b) = a^2 + b, \qquad J(u) = u^2 / 2, \qquad H(u) = -u^2 / 2 $$
#
# The best control, 0, is a *maximum* of $H$. MSA goes for the minimum, and `solve` will say that it diverged.

# %%
one_stage = mfoc.Problem(
    lambda t, x, u, z: torch.stack([x[:, 0] + u, x[:, 1] - u**2 / 2], 1),
    lambda x, z: x[:, 0] ** 2 + x[:, 1],
    [torch.tensor(0.1)],
)
origin = torch.zeros(1, 2)
for name, solver in {"SGD": mfoc.Gradient(partial(torch.optim.SGD, lr=0.5)), "MSA": mfoc.MSA()}.items():
    solution = mfoc.solve(one_stage, solver, origin, steps=20)
    print(
        f"{name} from u = 0.1: {solution.status.value}, u = {float(solution.controls[0]):.1g}, J = {solution.value:.1g}"
    )
print(mfoc.certify(one_stage, [torch.tensor(0.0)], origin, **effort).verdict)

# %% [markdown]
# The gradient finds the minimum of J, and MSA runs away from it. The certificate is not misled: the Hessian of J is
# positive, so this is a minimum, whatever H does. As layers become small steps, the two notions meet: what H leaves out
# of J is of the order $h^2$.
#
# ## What to change
#
# In the last cell, change what the control does to the second coordinate, and run it again:
#
# 1. `x[:, 1] + u**2 / 2`. Now H is convex, and its minimiser is the best control. MSA still runs away: with its costate
#    held, the minimiser of H is -2 u, twice as far on the other side. SGD finds 0.
# 2. `x[:, 1] + 2 * u**2`. The minimiser of H is -u / 2, so that MSA contracts to 0. Now SGD runs away: the curvature of
#    J has grown, and its learning rate is too long.
# 3. Put `mfoc.EMSA()` beside the two solvers in 1 and 2. It settles in both, with nothing tuned.

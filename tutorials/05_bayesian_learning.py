# %% [markdown]
# # Bayesian learning: from the ELBO to control
#
# After this lesson you can ask a small network for its posterior in four ways, see where they agree, and estimate the
# evidence with an error bar. It is for those who know what a posterior is. It runs for less than two minutes.
#
# ## The equation
#
# The posterior over the weights of a network is the likelihood times the prior, $\gamma$, over its integral, the
# evidence $Z$:
#
# $$ p(w) = \gamma(w) / Z, \qquad \mathrm{KL}(q \,|\, p) = E_q [ \log q(w) - \log \gamma(w) ] + \log Z \ge 0 $$
#
# So the expectation, a cost that can be computed for a law $q$, is at least $-\log Z$; minus it is the ELBO, and its
# minimum over all laws is at the posterior. Each way to get there is a mean-field control problem: a cloud of
# particles, dynamics, and something to choose.
#
# | method                | particles       | dynamics                                    | what is chosen     |
# |-----------------------|-----------------|---------------------------------------------|--------------------|
# | variational inference | data and noise  | the network                                 | a law over weights |
# | Langevin, MALA        | weights         | $x + h \nabla \log \gamma + \sqrt{2h} \xi$ | step size          |
# | SVGD                  | weights         | $x + h \, \phi(x, \mathrm{cloud})$         | step size          |
# | Foellmer              | weights, from 0 | $dX = u \, dt + \sigma \, dW$              | the drift $u$      |
#
# All of them meet one posterior here, and so does NUTS, the reference.

# %%
import math
import os
import time
from functools import partial
from pathlib import Path

import pyro
import torch
from pyro.infer import MCMC, NUTS
from sklearn.datasets import make_moons
from torch import nn

import mfoc
from mfoc.figures import COLORS, INK, new_axes, new_figure
from paradigms.bayesian import AdamRule, Drift, follmer, langevin, log_density, sample, svgd, to_potential, variational

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)

# %% [markdown]
# ## The posterior as one object
#
# Two half-moons, and a network of five hidden neurons. `log_density` takes a network with a likelihood and a prior (or
# a function, or a Pyro model) and gives the log posterior of a whole cloud at once. Each weight's prior is N(0, 1).

# %%
number = 60
points, labels = make_moons(number, noise=0.2, random_state=0)
points, labels = torch.tensor(points - points.mean(0), dtype=torch.float32), torch.tensor(labels)

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))
posterior = log_density(net, (points, labels), likelihood="categorical")
print(f"a particle is a network of {posterior.dim} weights")

results, seconds, clock = {}, {}, time.process_time()


def keep(name, draws):
    """Draws `[n, d]` of a method, and the processor time since the last."""
    global clock
    results[name], seconds[name], clock = draws, time.process_time() - clock, time.process_time()


# %% [markdown]
# ## Variational inference
#
# The control is a Gaussian law: a mean and a scale for each weight. Each layer's running cost is its share of
# KL(q | prior), the terminal cost is the negative log likelihood, and J is -ELBO / N.

# %%
formulation = variational(net, (points, labels), likelihood="categorical", samples=8)
solution = formulation.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=0.02)), steps=10 if SMOKE else 1000)
gaussian = formulation.readout(solution)
keep("VI", posterior.ravel(gaussian.weights(1000)))
many = variational(net, (points, labels), likelihood="categorical", samples=100 if SMOKE else 4000, seed=1)
elbo = -number * float(mfoc.evaluate(many.problem, solution, many.population(0)).value)
print(f"ELBO {elbo:.2f}, a lower bound of log Z")

# %% [markdown]
# ## Flows of particles
#
# Langevin dynamics is the gradient flow of KL(law | posterior), by particles; MALA corrects the error of its step. SVGD
# has no noise: each particle moves along a field that depends on the law of the cloud.

# %%
steps, size = 40 if SMOKE else 600, 0.04
clock = time.process_time()
chains = langevin(posterior, step=size, particles=100, method="mala", seed=1)
drawn = sample(chains, steps=steps, burn_in=steps // 2, thin=max(1, steps // 10))
keep("MALA", drawn.x.flatten(0, 1))
keep("SVGD", sample(svgd(posterior, step=0.05, rule=AdamRule(), particles=100, seed=1), steps=steps // 2).x[-1])
print(f"MALA accepted {drawn.acceptance:.0%} of its moves")

# %% [markdown]
# ## Steering to the posterior
#
# The Foellmer sampler starts a diffusion in one point and steers it to the posterior, at the least cost:
#
# $$ J(u) = E \Big[ \int \frac{|u|^2}{2 \sigma^2} \, dt + \log p^0_T(X_T) - \log \gamma(X_T) \Big] \ge -\log Z $$
#
# with equality for the best drift: an ELBO over paths, whose gap closes as the control problem is solved. The paths
# carry weights with mean Z, so the answer has an error bar. The effective sample size says how far to trust it.

# %%
budget, paths = 4 if SMOKE else 120, 100 if SMOKE else 500
sampler = follmer(posterior, Drift(posterior.dim), steps=30, particles=64, stop_score=True, seed=3)
solver = mfoc.Gradient(
    partial(torch.optim.Adam, lr=5e-3), lr_schedule=lambda k: 0.01 + (1 + math.cos(math.pi * min(1, k / budget))) / 2
)
checks = []


def watch(at):
    """Log Z and its lower bound -J on the way."""
    if at.step % max(1, budget // 8) == 0:
        checks.append((at.step, sampler.evaluate(at, n=paths)))


clock = time.process_time()
steered = sampler.solve(solver, steps=budget, hooks=[watch])
evidence = sampler.evaluate(steered, n=5 * paths)
keep("Foellmer", evidence.resampled(1000))
print(evidence)

# %% [markdown]
# ## The references
#
# `to_potential` hands the same object to Pyro's NUTS, the reference for the draws. The reference for log Z is plain
# Monte Carlo: the mean likelihood of many draws from the prior.

# %%
potential = to_potential(posterior)
pyro.set_rng_seed(0)
mcmc = MCMC(
    NUTS(potential_fn=potential.potential_fn, max_tree_depth=3 if SMOKE else 6),
    num_samples=10 if SMOKE else 150,
    warmup_steps=5 if SMOKE else 75,
    initial_params=potential.initial_params,
    disable_progbar=True,
)
clock = time.process_time()
mcmc.run()
keep("NUTS", posterior.ravel(mcmc.get_samples()))

prior, logs = torch.distributions.Normal(0.0, 1.0), []
for k in range(2 if SMOKE else 40):
    x = posterior.initial(5000, seed=100 + k)  # draws from the prior
    logs.append(posterior(x) - prior.log_prob(x).sum(1))
weights = torch.cat(logs).double()
scaled = (weights - weights.max()).exp()
reference = float(weights.max() + scaled.mean().log())
bar = float(scaled.std() / scaled.mean() / len(scaled) ** 0.5)
print(f"log Z: prior draws {reference:.2f} +- {bar:.2f}, Foellmer {evidence.log_z:.2f} +- {evidence.error:.2f}")
print(f"lower bounds: Foellmer {-evidence.J:.2f}, Gaussian law {elbo:.2f}")

# %%
figure, (axis,) = new_axes(6.5, 4)
at = [step for step, _ in checks]
axis.axhspan(reference - 2 * bar, reference + 2 * bar, color=INK, alpha=0.2, linewidth=0, label="prior draws")
axis.axhline(elbo, color=COLORS[1], linestyle="--", label="ELBO of the Gaussian law")
bars = [2 * e.error for _, e in checks]
axis.errorbar(at, [e.log_z for _, e in checks], bars, fmt="o", capsize=3, color=COLORS[0], label="weighted paths")
axis.plot(at, [-e.J for _, e in checks], "s-", color=COLORS[2], markersize=5, label="lower bound -J")
axis.set(
    xlabel="step of the solver",
    ylabel="log evidence [nats]",
    title="Steering closes the gap to the evidence (bars: 2 s.e.)",
)
figure.legend(loc="outside lower center", ncols=2, frameon=False)
figure.savefig(FIGURES / "05_evidence.png")
figure

# %% [markdown]
# The weighted paths estimate the evidence before the drift is any good. The bound -J rises towards it as the drift
# improves; what remains is the price of a drift that is not the best one. A small effective sample size is a warning:
# few paths carry the weight, and the error bar may be too short. So it is here, at 1.9 % of 2500 paths: the two
# estimates of log Z differ by more than both standard errors together.
#
# ## Side by side
#
# A network has symmetries (hidden neurons may be swapped), so draws are compared by what they predict: the probability
# of class 1 at every point of the plane, averaged over networks.

# %%
grid = torch.linspace(-2.5, 2.5, 40 if SMOKE else 100)
mesh = torch.cartesian_prod(grid, grid)


def probability(draws):
    """The mean over networks `[n, d]` of the probability of class 1 on the mesh."""
    out = torch.func.vmap(lambda w: torch.func.functional_call(net, w, (mesh,)))(posterior.named(draws))
    return out.softmax(-1)[..., 1].mean(0).reshape(len(grid), -1)


maps = {name: probability(draws) for name, draws in results.items()}
for name, draws in results.items():
    gap = float((maps[name] - maps["NUTS"]).abs().mean())
    print(f"{name:8s} {len(draws):5d} networks, {seconds[name]:5.1f} s; mean difference from NUTS {gap:.3f}")

figure = new_figure(12, 3)
panels = figure.subplots(1, len(maps), sharex=True, sharey=True)
for axis, (name, values) in zip(panels, maps.items(), strict=True):
    filled = axis.contourf(grid, grid, values.mT, levels=torch.linspace(0, 1, 11).tolist(), cmap="cividis")
    axis.contour(grid, grid, values.mT, levels=[0.5], colors="white", linewidths=1.5)
    for label, marker, color in ((0, "o", "white"), (1, "^", "black")):
        axis.plot(*points[labels == label].T, marker, color=color, markeredgecolor="#888888", markersize=4)
    axis.set(title=name, aspect="equal", xlabel="first input")
panels[0].set_ylabel("second input")
figure.colorbar(filled, ax=panels, label="probability of class 1 (triangles)")
figure.savefig(FIGURES / "05_posteriors.png")
figure

# %% [markdown]
# The white line is where the averaged networks are undecided. Away from the data the draws disagree, so the
# probability stays near one half over a wide region: the network knows what it does not know.
#
# `CrossEntropy` is another solver for the Foellmer problem, with lighter tails of the weights; `GaussianDrift` is its
# exact drift for a Gaussian target.
#
# ## What to change
#
# 1. **A bolder Langevin step.** Set `size = 0.2`. MALA accepts 0 % of its moves in place of 24 %: the proposals leave
#    the posterior, and the chains stand still.
# 2. **A drift that is hardly trained.** Set `budget` to 20. The bound -J is -32.41 in place of -29.39, and the
#    effective sample size 0.6 % in place of 1.9 %.
# 3. **Fewer points.** Set `number = 20`. By the draws from the prior log Z is -11.58 +- 0.02 in place of -25.42 +-
#    0.23: there are fewer labels to explain.

# %% [markdown]
# # Bayesian learning: from the ELBO to control
#
# A posterior p(w | data) = gamma(w) / Z over the weights of a network can be reached in several ways, and each is a
# mean-field control problem: a cloud of particles, dynamics, a cost, and something left to choose.
#
# | method | particles | dynamics | what is chosen |
# |---|---|---|---|
# | variational inference | data, noise | the network | a law over weights |
# | Langevin, MALA | weights | x + h grad log gamma + sqrt(2h) xi | step sizes |
# | SVGD | weights | x + h phi(x, law of the cloud) | step sizes |
# | Foellmer | weights, from 0 | dX = u dt + sigma dW | the drift u |
#
# This page puts one posterior before all of them, and before NUTS: a small network on two half-moons.

# %%
import math
import os
import time
from functools import partial
from pathlib import Path

import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import MCMC, NUTS
from sklearn.datasets import make_moons
from torch import nn

import mfoc
from paradigms.bayesian import (
    AdamRule,
    CrossEntropy,
    Drift,
    GaussianDrift,
    follmer,
    langevin,
    log_density,
    sample,
    svgd,
    to_potential,
    variational,
)

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)

points, labels = make_moons(60, noise=0.2, random_state=0)
points, labels = torch.tensor(points - points.mean(0), dtype=torch.float32), torch.tensor(labels)

# %% [markdown]
# ## The posterior as one object
#
# `log_density` takes a function, a Pyro model with its data, or a network with a likelihood and a prior, and gives the
# unnormalised log posterior of a whole cloud of particles at once. Here a particle is a network with 2-5-2 neurons, and
# the prior of each of its 27 weights is N(0, 1).

# %%
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))
posterior = log_density(net, (points, labels), likelihood="categorical")
print(f"{posterior.dim} weights: " + ", ".join(f"{name} {tuple(shape)}" for name, shape in posterior.shapes.items()))


def probability(x, inputs):
    """The mean over networks `[n, d]` of the probability of class 1 at inputs `[N, 2]`."""
    named = posterior.named(x)
    out = torch.func.vmap(lambda w: torch.func.functional_call(net, w, (inputs,)))(named)
    return out.softmax(-1)[..., 1].mean(0)


results, seconds = {}, {}


def timed(name, run):
    """Draws of a method, kept under its name with the time they took."""
    began = time.perf_counter()
    results[name] = run()
    seconds[name] = time.perf_counter() - began


# %% [markdown]
# ## Variational inference
#
# The control is a law over weights: a mean and a scale for each. A particle is one draw of the noise, the states are
# the activations of that draw on all points, each layer's running cost is its share of KL(q || prior) / N, and the
# terminal cost is the negative log likelihood. J is -ELBO / N.

# %%
law = partial(variational, net, (points, labels), likelihood="categorical")
found_law = {}


def run_vi():
    formulation = law(samples=8)
    solution = formulation.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=0.02)), steps=10 if SMOKE else 3000)
    found_law["q"], found_law["controls"] = formulation.readout(solution), solution.controls
    return posterior.ravel(found_law["q"].weights(1000))


timed("VI", run_vi)
many = law(samples=100 if SMOKE else 4000, seed=1)
elbo = -len(points) * float(mfoc.evaluate(many.problem, found_law["controls"], many.population(0)).value)
print(f"ELBO {elbo:.2f}: a lower bound of log Z, which is estimated below")

# %% [markdown]
# ## Flows of particles
#
# Langevin dynamics is the gradient flow of KL(rho || p) in the space of laws, by particles. MALA corrects the error of
# the step. SVGD has no noise: each particle moves along a field that depends on the law of the cloud. Both return a
# formulation: `mfoc.rollout` runs it, `sample` runs it for long.

# %%
steps = 40 if SMOKE else 1500
mala = langevin(posterior, step=0.04, particles=100, method="mala", seed=1)
drawn = {}


def run_mala():
    drawn["mala"] = sample(mala, steps=steps, burn_in=steps // 2, thin=max(1, steps // 10))
    return drawn["mala"].x.flatten(0, 1)


timed("MALA", run_mala)
timed("SVGD", lambda: sample(svgd(posterior, step=0.05, rule=AdamRule(), particles=100, seed=1), steps=steps).x[-1])
print(f"MALA accepted {drawn['mala'].acceptance:.0%} of its moves")

# %% [markdown]
# What is chosen in these problems is the step size; the cost is the squared kernel Stein discrepancy of the last cloud,
# which vanishes only at the posterior. So a solver can tune it:

# %%
short = langevin(posterior, step=0.001, steps=10, particles=30, seed=2)
tuned = short.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=0.1)), steps=3 if SMOKE else 30)
print(
    f"ten steps of ULA: discrepancy {tuned.history[0]['value']:.1f} at h = 0.001, {tuned.value:.1f} at "
    f"h = {float(tuned.controls['log_step'].exp()):.4f}, where the solver went"
)

# %% [markdown]
# ## The path-integral (Foellmer) sampler
#
# Start a diffusion in one point and steer it to the posterior, at the least cost. With
#
#     J(u) = E[ int |u|^2 / (2 sigma^2) dt + log p0_T(X_T) - log gamma(X_T) ]
#
# -J is a lower bound of log Z for every drift u and equal to it for the best: an ELBO over paths, whose gap closes when
# the control problem is solved. The paths carry weights with mean Z, so the answer comes with an error bar, and the
# effective sample size of the weights says how far to trust it.

# %%
sampler = follmer(posterior, Drift(posterior.dim), steps=30, particles=64 if SMOKE else 128, stop_score=True, seed=3)
budget = 4 if SMOKE else 300
solver = mfoc.Gradient(
    partial(torch.optim.Adam, lr=5e-3), lr_schedule=lambda k: 0.01 + (1 + math.cos(math.pi * min(1, k / budget))) / 2
)
checks = []


def watch(at):
    """Log Z and -J on the way."""
    if at.step % max(1, budget // 10) == 0:
        checks.append((at.step, sampler.evaluate(at, n=200 if SMOKE else 1000)))


evidence = {}


def run_follmer():
    solution = sampler.solve(solver, steps=budget, hooks=[watch])
    evidence["follmer"] = sampler.evaluate(solution, n=500 if SMOKE else 10_000)
    return evidence["follmer"].resampled(1000)


timed("Foellmer", run_follmer)
print(evidence["follmer"])

# %% [markdown]
# ### The same sampler by the other divergence
#
# J + log Z is KL(law of the paths || optimal law), and paths that minimise it may leave out what they cover badly, as
# no weight tells. `CrossEntropy` is a solver that minimises KL(optimal law || law of the paths): it draws end points by
# their weights, moves them by MALA, and regresses the drift on Brownian bridges to them. The weights get lighter tails.

# %%
steps = 2 if SMOKE else 1600
adam = mfoc.Gradient(partial(torch.optim.Adam, lr=3e-3), lr_schedule=lambda k: (1 + math.cos(math.pi * k / steps)) / 2)


def run_cross_entropy():
    solution = sampler.solve(CrossEntropy(adam, every=40, paths=64 if SMOKE else 512), steps=steps)
    evidence["cross-entropy"] = sampler.evaluate(solution, n=500 if SMOKE else 10_000)
    return evidence["cross-entropy"].resampled(1000)


timed("cross-entropy", run_cross_entropy)
print(evidence["cross-entropy"])

# %% [markdown]
# ## NUTS, through the same object
#
# `to_potential` hands the log density to Pyro's own sampler. It is the reference for the draws. For log Z the reference
# is plain Monte Carlo: the mean likelihood over the prior, with many draws.

# %%
potential = to_potential(posterior)
pyro.set_rng_seed(0)
mcmc = MCMC(
    NUTS(potential_fn=potential.potential_fn, max_tree_depth=3 if SMOKE else 7),
    num_samples=10 if SMOKE else 400,
    warmup_steps=5 if SMOKE else 150,
    initial_params=potential.initial_params,
    disable_progbar=True,
)


def run_nuts():
    mcmc.run()
    return posterior.ravel(mcmc.get_samples())


timed("NUTS", run_nuts)


def prior_evidence(rounds):
    """Log of the mean likelihood over draws from the prior, with its standard error."""
    logs = []
    for k in range(rounds):
        x = posterior.initial(5000, seed=100 + k)
        logs.append(posterior(x) - torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1))
    weights = torch.cat(logs).double()
    scaled = (weights - weights.max()).exp()
    return float(weights.max() + scaled.mean().log()), float(scaled.std() / scaled.mean() / math.sqrt(len(scaled)))


reference, bar = prior_evidence(2 if SMOKE else 100)
found, other = evidence["follmer"], evidence["cross-entropy"]
print(
    f"log Z: Foellmer {found.log_z:.2f} +- {found.error:.2f}, by cross-entropy {other.log_z:.2f} +- {other.error:.2f}"
)
print(f"prior draws {reference:.2f} +- {bar:.2f}")
print(f"lower bounds: -J = {-found.J:.2f} (J + log Z = {found.J + reference:.2f}), ELBO of the Gaussian law {elbo:.2f}")

# %% [markdown]
# ## Side by side
#
# A network has symmetries (hidden units may be swapped), so the draws are compared by what they predict.

# %%
axis = torch.linspace(-2.5, 2.5, 40 if SMOKE else 100)
mesh = torch.cartesian_prod(axis, axis)
maps = {name: probability(x, mesh).reshape(len(axis), -1) for name, x in results.items()}
for name, x in results.items():
    gap = float((maps[name] - maps["NUTS"]).abs().mean())
    print(
        f"{name:13s} {len(x):5d} networks in {seconds[name]:6.1f} s; predictions differ from those of NUTS by {gap:.3f}"
    )

figure = Figure(figsize=(9.4, 6), layout="constrained", dpi=120)
places = figure.subplots(2, 3, sharex=True, sharey=True)
for place, (name, values) in zip(places.flat, maps.items(), strict=True):
    filled = place.contourf(axis, axis, values.mT, levels=torch.linspace(0, 1, 11).tolist(), cmap="RdBu", alpha=0.8)
    place.contour(axis, axis, values.mT, levels=[0.5], colors="black", linewidths=1)
    place.scatter(*points.mT, c=labels, cmap="RdBu", edgecolors="black", s=18, linewidths=0.6)
    place.set(title=name, aspect="equal")
figure.supxlabel("first input")
figure.supylabel("second input")
figure.colorbar(filled, ax=places, label="probability of the blue class, averaged over networks", shrink=0.8)
figure.savefig(FIGURES / "05_posteriors.png")

# %%
figure = Figure(figsize=(5.5, 3.6), layout="constrained", dpi=120)
axes = figure.subplots()
at = [step for step, _ in checks]
axes.errorbar(
    at, [e.log_z for _, e in checks], [2 * e.error for _, e in checks], fmt="o", label="log Z, weighted paths"
)
axes.plot(at, [-e.J for _, e in checks], "s-", label="lower bound -J")
axes.axhspan(reference - 2 * bar, reference + 2 * bar, color="grey", alpha=0.3, label="reference")
axes.set(xlabel="steps of the solver", ylabel="log evidence", title="Control narrows the gap")
axes.legend()
figure.savefig(FIGURES / "05_evidence.png")

# %% [markdown]
# For a posterior that is nearly Gaussian, `GaussianDrift(mean, covariance)` is the
# optimal drift of its Laplace approximation in closed form, and the place to start from:

# %%
mean, covariance = torch.zeros(2), torch.diag(torch.tensor([0.5, 0.1]))
law = torch.distributions.MultivariateNormal(mean, covariance)
target = log_density(lambda x: law.log_prob(x) + 3.0, like=torch.zeros(2))
exact = follmer(target, GaussianDrift(mean, covariance), steps=50)
print(exact.evaluate(mfoc.Iterate(0, exact.problem.controls, None)), "(log Z = 3)")

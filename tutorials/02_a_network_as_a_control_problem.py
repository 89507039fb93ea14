# %% [markdown]
# # A network as a control problem
#
# A network pushes a cloud of inputs through its layers. Read as a control problem:
#
# | network                        | control problem                              |
# |--------------------------------|----------------------------------------------|
# | layer t                        | stage t, dynamics x_(t+1) = f_t(x_t, u_t)    |
# | activations after t layers     | state x_t                                    |
# | weights of layer t             | control u_t, shared by all particles         |
# | an example and its label       | a particle: initial state x_0 and data z     |
# | loss                           | terminal cost Phi(x_T, z)                    |
# | weight decay                   | running cost L_t(u_t)                        |
# | back-propagated gradient       | costate p_t                                  |
#
# Each line of the table is shown below to be exact, by numbers.

# %%
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from torch import nn

import mfoc
from mfoc import hooks, plot
from mfoc.networks import Residual

SMOKE = bool(os.environ.get("MFOC_SMOKE"))  # tiny budgets, to see that everything runs
FIGURES = Path(os.environ.get("MFOC_FIGURES", "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)


def moons(number, seed):
    """Two interleaved half circles: points `[N, 2]`, labels `[N]`."""
    points, labels = make_moons(number, noise=0.15, random_state=seed)
    return mfoc.Particles(torch.as_tensor(points), torch.as_tensor(labels))


train, test = moons(600, 0), moons(600, 1)

# %% [markdown]
# ## The problem
#
# A linear layer lifts the plane to 16 dimensions, ten residual blocks x + h tanh(W x + b) move the cloud (Euler steps
# of a differential equation), a linear layer reads two class scores. `from_module` copies the network and never
# changes it; J is the mean cross-entropy plus weight decay.

# %%
width, depth, h, decay = 16, 10, 0.5, 1e-3
blocks = [Residual(nn.Sequential(nn.Linear(width, width), nn.Tanh()), h) for _ in range(depth)]
net = nn.Sequential(nn.Linear(2, width), *blocks, nn.Linear(width, 2))
problem = mfoc.from_module(net, F.cross_entropy, running_cost=mfoc.weight_decay(decay))

trajectory = mfoc.rollout(problem, problem.controls, train)
for t in (0, 1, problem.stages - 1):
    shapes = {name: tuple(weight.shape) for name, weight in problem.controls[t].items()}
    print(
        f"stage {t:2d}: state {tuple(trajectory.states[t].shape)} -> {tuple(trajectory.states[t + 1].shape)}, {shapes}"
    )
print(f"J = {float(trajectory.cost.mean()):.6f}, the mean of one cost per particle, {tuple(trajectory.cost.shape)}")

# %% [markdown]
# ## Back-propagation is the costate equation
#
# With H_t(x, p, u, z) = L_t(x, u, z) + <p, f_t(x, u, z)>, the costates run backwards, p_T = dPhi/dx and
# p_t = dH_t/dx (x_t, p_(t+1), u_t), and the gradient of the objective is dJ/du_t = E dH_t/du. That formula, stage by
# stage, against `backward()` on the network itself:

# %%
costates = mfoc.costates(problem, problem.controls, trajectory, train)


def hamiltonian_gradient(t):
    """E dH_t/du at the frozen state x_t and costate p_(t+1)."""
    control = {name: weight.detach().requires_grad_() for name, weight in problem.controls[t].items()}
    value = mfoc.hamiltonian(problem, t, trajectory.states[t], costates[t + 1], control, train.data).mean()
    return torch.autograd.grad(value, list(control.values()))


by_pontryagin = [slope for t in range(problem.stages) for slope in hamiltonian_gradient(t)]

loss = F.cross_entropy(net(train.state), train.data)
loss = loss + decay / 2 * sum(weight.square().sum() for weight in net.parameters())
loss.backward()
by_backward = [weight.grad for weight in net.parameters()]

difference = max(float((a - b).abs().max()) for a, b in zip(by_pontryagin, by_backward, strict=True))
largest = max(float(slope.abs().max()) for slope in by_backward)
print(f"largest entry of the gradient {largest:.3g}, largest difference {difference:.1e}")

# %% [markdown]
# ## Weight decay is a running cost
#
# `weight_decay(c)` is the running cost (c / 2) |u_t|^2. Its gradient is c u_t, which is what the argument of the same
# name adds in `torch.optim.SGD`. So a plain training loop with that argument and `solve` with that cost walk the
# same path.

# %%
plain = mfoc.to_module(net, problem.controls)  # the initial network, as a module of its own
optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=decay)
for _ in range(20):
    optimizer.zero_grad()
    F.cross_entropy(plain(train.state), train.data).backward()
    optimizer.step()

solution = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), train, steps=20)
weights = [weight for control in solution.controls for weight in control.values()]
difference = max(float((a - b).abs().max()) for a, b in zip(weights, plain.state_dict().values(), strict=True))
print(f"after 20 steps of SGD the weights of the two loops differ by at most {difference:.1e}")

# %% [markdown]
# (With Adam a running cost is the L2 penalty, scaled like the rest of the gradient, as in `torch.optim.Adam`; the
# decoupled decay of `AdamW` is no gradient of a cost and has no Hamiltonian.)
#
# ## Solve, and get a network back
#
# The population deals out shuffled mini-batches; `to_module` puts the controls into a copy of the network.

# %%
steps = 30 if SMOKE else 900
batches = mfoc.population(train, batch_size=100, seed=0)
adam = mfoc.Gradient(partial(torch.optim.Adam, lr=5e-3))
record = hooks.Record(lambda at: float(mfoc.evaluate(problem, at.controls, train).value), every=max(1, steps // 50))
solution = mfoc.solve(problem, adam, batches, steps=steps, hooks=[record])
solved = mfoc.to_module(net, solution.controls)


def accuracy(module, particles):
    with torch.no_grad():
        return float((module(particles.state).argmax(1) == particles.data).double().mean())


print(f"J on the training set {float(trajectory.cost.mean()):.4f} -> {record.values[-1]:.4f} in {steps} steps")
for name, module in (("initial", net), ("solved", solved)):
    print(f"{name} network: accuracy {accuracy(module, train):.1%} on the training set")
    print(f"{name} network: accuracy {accuracy(module, test):.1%} on new points")

# %% [markdown]
# ## What the network does to the cloud
#
# The states of the solved network on test points, each in its own two first principal components.

# %%
after = mfoc.rollout(problem, solution.controls, test)
figure = plot.cloud(after, test.data, stages=[0, 1, 4, 7, 11, 12])
figure.savefig(FIGURES / "02_cloud.png")
figure

# %% [markdown]
# The costates tell how much each stage's states matter to the final cost: p_t(i) is the gradient of the remaining cost
# of particle i in its state x_t(i). In a plain network of the same depth, without skip connections, the initial
# costates shrink from the output to the input, and with them the gradients of the first layers; a residual network
# keeps their size. After training most particles are classified with confidence, their loss is flat and their costates
# are small; the few near the boundary carry the gradient.


# %%
class Layer(nn.Sequential):
    """A linear map and its activation as one stage (a bare nn.Sequential would be unrolled into two)."""


layers = [Layer(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)]
without_skips = mfoc.from_module(
    nn.Sequential(nn.Linear(2, width), *layers, nn.Linear(width, 2)),
    F.cross_entropy,
    running_cost=mfoc.weight_decay(decay),
)
cases = {
    "plain network, initial weights": (without_skips, without_skips.controls),
    "residual network, initial weights": (problem, problem.controls),
    "residual network, solved": (problem, solution.controls),
}

figure = Figure(figsize=(10.5, 4), layout="constrained", dpi=120)
left, right = figure.subplots(1, 2)
for (name, (case, controls)), color in zip(cases.items(), plot.COLORS, strict=False):
    costates = mfoc.costates(case, controls, mfoc.rollout(case, controls, test), test)
    size = torch.stack([p.norm(dim=1) for p in costates])  # [T+1, N]
    low, middle, high = torch.quantile(size, torch.tensor([0.1, 0.5, 0.9]), dim=1)
    left.plot(middle, color=color, linewidth=2, label=name)
    left.fill_between(range(len(middle)), low, high, color=color, alpha=0.15, linewidth=0)
    print(f"{name:34s} median |p_0| / median |p_T| = {float(middle[0] / middle[-1]):.2g}")
left.set(yscale="log", xlabel="stage t (0 input, 12 output)", ylabel="size of the costate $\\|p_t(i)\\|$")
left.set_title("Costates: median of the particles, shaded 10 % to 90 %", fontsize=11)
right.plot(record.steps, record.values, color=plot.COLORS[2], linewidth=2)
right.set(xlabel="step", ylabel="objective J on the training set")
right.set_title("Adam on mini-batches of 100", fontsize=11)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, axis="y", color="#dddddd", linewidth=0.6)
figure.legend(loc="outside lower center", ncols=3, frameon=False)
figure.savefig(FIGURES / "02_costates.png")
figure

# %% [markdown]
# ## Stop and go on, bit for bit
#
# A checkpoint holds the controls and the solver's memory (Adam's moments). The batches need no saving, since a
# population is a function of the step. So a run that was stopped goes on as if it had not been. `steps` counts from
# the very beginning: a run loaded at step 300 of 900 does the 600 that are left.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "run.pt"
    mfoc.solve(problem, adam, batches, steps=steps // 3, hooks=[hooks.Checkpoint(path, every=10)])
    start = hooks.load(path)
    resumed = mfoc.solve(problem, adam, batches, steps=steps, start=start)

pairs = [
    (control[name], other[name])
    for control, other in zip(solution.controls, resumed.controls, strict=True)
    for name in control
]
same = all(torch.equal(a, b) for a, b in pairs)
print(f"resumed at step {start.step}, ended at step {resumed.last.step}; same bits as the uninterrupted run: {same}")
assert same

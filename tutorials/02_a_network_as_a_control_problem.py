# %% [markdown]
# # A network as a control problem
#
# After this lesson you can take a PyTorch network, read it as a control problem, solve that, get an ordinary network
# back, and stop and resume the run without changing a bit. It is for anyone who has trained a network before. It runs
# for about half a minute.
#
# ## The equation
#
# A network pushes a cloud of inputs through its layers. That is the control problem of the first lesson:
#
# $$ \min_u \; J(u) = E \Big[ \sum_t L_t(u_t) + \Phi(x_T, z) \Big], \qquad x_{t+1} = f_t(x_t, u_t) $$
#
# | network                        | control problem                              |
# |--------------------------------|----------------------------------------------|
# | layer t                        | stage t, dynamics $f_t$                      |
# | activations after t layers     | state $x_t$                                  |
# | weights of layer t             | control $u_t$, shared by all particles       |
# | an example and its label       | a particle: initial state $x_0$ and data $z$ |
# | loss                           | terminal cost $\Phi$                         |
# | weight decay                   | running cost $L_t$                           |
# | back-propagated gradient       | costate $p_t$                                |
#
# The lesson shows, by numbers, that the lines of this table are exact.

# %%
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import make_moons
from torch import nn

import mfoc
from mfoc import hooks, plot
from mfoc.figures import COLORS, look, new_axes
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


train, test = moons(600, seed=0), moons(600, seed=1)

# %% [markdown]
# ## From the network to the problem
#
# A linear layer lifts the plane to 16 dimensions, ten residual blocks move the cloud, and a linear layer reads two
# scores. `from_module` copies the network and never changes it.

# %%
width, depth, h, decay = 16, 10, 0.5, 1e-3
layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)]
blocks = [Residual(layer, h) for layer in layers]  # x + h tanh(W x + b)
net = nn.Sequential(nn.Linear(2, width), *blocks, nn.Linear(width, 2))
problem = mfoc.from_module(net, F.cross_entropy, running_cost=mfoc.weight_decay(decay))

trajectory = mfoc.rollout(problem, problem, train)
for t in (0, 1, problem.stages - 1):
    before, after = (tuple(trajectory.states[s].shape) for s in (t, t + 1))
    print(f"stage {t:2d}: state {before} -> {after}, controls: {', '.join(problem.controls[t])}")
print(f"J = {float(trajectory.cost.mean()):.4f}, the mean of one cost per particle")

# %% [markdown]
# ## Back-propagation is the costate equation
#
# With the Hamiltonian $H_t(x, p, u, z) = L_t(u) + \langle p, f_t(x, u) \rangle$, costates run backwards through the
# layers, and the gradient of J is the slope of the Hamiltonian:
#
# $$ p_T = \partial \Phi / \partial x, \qquad p_t = \partial H_t / \partial x \, (x_t, p_{t+1}, u_t), \qquad
#    dJ/du_t = E \; \partial H_t / \partial u $$
#
# Here is that formula, stage by stage, against `backward()` on the network itself.

# %%
costates = mfoc.costates(problem, problem, trajectory, train)


def hamiltonian_slope(t):
    """E dH_t/du with the state x_t and the costate p_(t+1) held."""
    control = {name: weight.detach().requires_grad_() for name, weight in problem.controls[t].items()}
    value = mfoc.hamiltonian(problem, t, trajectory.states[t], costates[t + 1], control, train.data).mean()
    return torch.autograd.grad(value, list(control.values()))


by_pontryagin = [slope for t in range(problem.stages) for slope in hamiltonian_slope(t)]

loss = F.cross_entropy(net(train.state), train.data)
loss = loss + decay / 2 * sum(weight.square().sum() for weight in net.parameters())
by_autograd = torch.autograd.grad(loss, list(net.parameters()))

difference = max(float((a - b).abs().max()) for a, b in zip(by_pontryagin, by_autograd, strict=True))
largest = max(float(slope.abs().max()) for slope in by_autograd)
print(f"largest entry of the gradient {largest:.2g}, largest difference {difference:.0e}")

# %% [markdown]
# ## Weight decay is a running cost
#
# The gradient of $c/2 \; |u_t|^2$ is $c \, u_t$, which is what the argument `weight_decay=c` of `torch.optim.SGD`
# adds. So a plain training loop and `solve` walk the same path.

# %%
plain = mfoc.to_module(net, problem)  # the initial network, as a module of its own
optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=decay)
for _ in range(20):
    optimizer.zero_grad()
    F.cross_entropy(plain(train.state), train.data).backward()
    optimizer.step()

ours = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.1)), train, steps=20)
pairs = zip(mfoc.to_module(net, ours).parameters(), plain.parameters(), strict=True)
difference = max(float((a - b).detach().abs().max()) for a, b in pairs)
print(f"after 20 steps the two networks differ by at most {difference:.0e}")

# %% [markdown]
# ## Solve, and get a network back
#
# The population deals out shuffled mini-batches. A hook records J on the whole training set. `to_module` puts the
# controls into a copy of the network.

# %%
steps = 30 if SMOKE else 900
batches = mfoc.population(train, batch_size=100, seed=0)
adam = mfoc.Gradient(partial(torch.optim.Adam, lr=5e-3))
record = hooks.Record(lambda at: float(mfoc.evaluate(problem, at, train).value), every=max(1, steps // 50))
solution = mfoc.solve(problem, adam, batches, steps=steps, hooks=[record])
solved = mfoc.to_module(net, solution)


def accuracy(module, particles):
    with torch.no_grad():
        return float((module(particles.state).argmax(1) == particles.data).double().mean())


print(f"J on the training set {float(trajectory.cost.mean()):.3f} -> {record.values[-1]:.3f} in {steps} steps")
for name, module in (("initial", net), ("solved", solved)):
    print(f"{name:7s} network: accuracy {accuracy(module, train):.1%} in training, {accuracy(module, test):.1%} on new")

# %% [markdown]
# ## What the network does to the cloud
#
# The new points as they pass through the layers, each time seen in their two first principal components.

# %%
figure = plot.cloud(mfoc.rollout(problem, solution, test), test.data)
figure.savefig(FIGURES / "02_cloud.png")
figure

# %% [markdown]
# ## Where the gradient lives
#
# The costate $p_t(i)$ is the gradient of what particle $i$ still has to pay in its state $x_t(i)$. After training, most
# particles are classified with confidence, and their costates are small. The few near the boundary carry the gradient.

# %%
figure, (left, right) = new_axes(10, 3.8, 2)
cases = {"initial weights": (problem, COLORS[6], "--"), "solved": (solution, COLORS[1], "-")}
for name, (controls, color, line) in cases.items():
    costates = mfoc.costates(problem, controls, mfoc.rollout(problem, controls, test), test)
    size = torch.stack([p.norm(dim=1) for p in costates])  # [T+1, N]
    low, middle, high = torch.quantile(size, torch.tensor([0.1, 0.5, 0.9]), dim=1)
    left.plot(middle, color=color, linestyle=line, linewidth=2, label=name)
    left.fill_between(range(len(middle)), low, high, color=color, alpha=0.15, linewidth=0)
    print(f"{name:15s} median |p_0| / median |p_T| = {float(middle[0] / middle[-1]):.2g}")
left.set(yscale="log", ylim=(None, 20), xlabel="stage t (0 is the input)", ylabel="size of the costate $|p_t(i)|$")
left.set_title("Median of the particles, shaded 10 % to 90 %")
left.legend(frameon=False, loc="upper right", ncols=2)
right.plot([0, *record.steps], [float(trajectory.cost.mean()), *record.values], markersize=3, **look("Adam"))
right.set(xlabel="step of Adam", ylabel="J on the training set", ylim=(0, None), title="Mini-batches of 100")
figure.savefig(FIGURES / "02_costates.png")
figure

# %% [markdown]
# ## Stop and go on, bit for bit
#
# A checkpoint holds the controls and the solver's memory. Batches need no saving, since a population is a function of
# the step. `steps` counts from the very beginning, so the resumed run does what is left of them.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "run.pt"
    mfoc.solve(problem, adam, batches, steps=steps // 3, hooks=[hooks.Checkpoint(path, every=10)])
    start = hooks.load(path)
resumed = mfoc.solve(problem, adam, batches, steps=steps, start=start)
weights, others = solved.parameters(), mfoc.to_module(net, resumed).parameters()
same = all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
print(f"resumed at step {start.step}, ended at step {resumed.last.step}; the same bits: {same}")

# %% [markdown]
# ## What to change
#
# Look at the initial weights, at the ratio of the costates of input and output.
#
# 1. **No skip connections.** Set `blocks = layers`. The ratio falls from 0.43 to 0.00017: the gradient hardly reaches
#    the first layers. (A nested `nn.Sequential` is unrolled, so there are 22 stages.)
# 2. **Longer steps.** Set `h = 2.0`. The ratio is 1.2: costates now grow towards the input, and J starts at 1.02.
# 3. **Finer steps.** Set `depth = 40` and `h = 0.125`, which is the same time in four times as many layers. The ratio
#    is 0.26: of the size it had with ten blocks, since both are Euler steps of one kind of differential equation.

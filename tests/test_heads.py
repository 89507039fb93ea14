"""A head with a control of its own, against plain autograd and against the same network written out."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc import tree
from mfoc.networks.losses import per_sample

D = torch.float64
N, WIDTH, CLASSES, T = 7, 3, 2, 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def ode(**options):
    """A neural ODE of which the terminal cost takes ``[N, 2]``."""
    controls = [{"W": drawn(WIDTH, WIDTH, seed=t), "b": drawn(WIDTH, seed=9 + t)} for t in range(T)]
    return mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"] + u["b"]), per_sample(F.cross_entropy), controls, **options
    )


def cell(**options):
    """A recurrent cell over the sequence ``z["in"]`` ``[N, T, 2]``, one control for all times."""

    def dynamics(t, h, u, z):
        return torch.tanh(h @ u["W"] + z["in"][:, t] @ u["U"])

    controls = {"W": drawn(WIDTH, WIDTH), "U": drawn(2, WIDTH, seed=1)}
    loss = per_sample(F.cross_entropy)
    return mfoc.Problem(dynamics, lambda y, z: loss(y, z["y"]), controls, horizon=T, schedule=mfoc.tied, **options)


def linear(seed=3):
    torch.manual_seed(seed)
    return nn.Linear(WIDTH, CLASSES).double()


def labels():
    return torch.arange(N) % CLASSES


def sequences():
    return mfoc.Particles(torch.zeros(N, WIDTH, dtype=D), {"in": drawn(N, T, 2, seed=4), "y": labels()})


def readout(x, v, z):
    return x @ v["W"].mT + v["b"]


def as_control(layer):
    return {"W": layer.weight.detach().clone(), "b": layer.bias.detach().clone()}


def ode_by_hand(controls, x):
    for u in controls[:-1]:
        x = x + torch.tanh(x @ u["W"] + u["b"]) / T
    head = list(controls[-1].values())
    return F.cross_entropy(x @ head[0].mT + head[1], labels())


def cell_by_hand(controls, cloud):
    u, v = controls["stages"], controls["head"]
    h = cloud.state
    for t in range(T):
        h = torch.tanh(h @ u["W"] + cloud.data["in"][:, t] @ u["U"])
    return F.cross_entropy(h @ v["W"].mT + v["b"], labels())


def check_gradient(problem, cloud, by_hand):
    free = tree.detached(problem.controls, requires_grad=True)
    value = by_hand(free)
    slopes = torch.autograd.grad(value, tree.leaves(free))
    for recompute in (False, True):
        found = mfoc.evaluate(problem, problem.controls, cloud, recompute=recompute)
        torch.testing.assert_close(found.value, value.detach())
        for mine, other in zip(tree.leaves(found.gradient), slopes, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("module", [False, True])
def test_a_neural_ode_with_a_linear_head(module):
    layer, x = linear(), drawn(N, WIDTH, seed=5)
    problem = mfoc.with_head(ode(), layer) if module else mfoc.with_head(ode(), readout, as_control(layer))
    assert problem.stages == T + 1
    check_gradient(problem, mfoc.Particles(x, labels()), lambda u: ode_by_hand(u, x))


def test_a_recurrent_network_with_a_readout():
    problem, cloud = mfoc.with_head(cell(), readout, as_control(linear())), sequences()
    assert problem.stages == T + 1
    check_gradient(problem, cloud, lambda u: cell_by_hand(u, cloud))


def test_the_problem_it_is_given_is_not_changed():
    problem = ode()
    before = tree.copy(problem.controls)
    mfoc.with_head(problem, linear())
    assert problem.stages == T
    assert len(problem.controls) == T
    for a, b in zip(tree.leaves(problem.controls), tree.leaves(before), strict=True):
        assert torch.equal(a, b)


def test_a_network_cut_at_its_last_layer_is_the_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
    whole = mfoc.from_module(net, F.cross_entropy)
    cut = mfoc.with_head(mfoc.from_module(net[:2], F.cross_entropy), net[2])
    cloud = mfoc.Particles(drawn(N, WIDTH), labels())
    found, expected = (mfoc.evaluate(each, each.controls, cloud) for each in (cut, whole))
    torch.testing.assert_close(found.value, expected.value)
    for a, b in zip(*(tree.leaves(each.gradient) for each in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
    assert [cut.affine(t) for t in range(3)] == [whole.affine(t) for t in range(3)]
    assert cut.kind(2) != cut.kind(0)


SOLVERS = {
    "gradient": mfoc.Gradient(lambda p: torch.optim.SGD(p, lr=0.1)),
    "msa": mfoc.MSA(mfoc.minimisers.Descent(0.1)),
    "emsa": mfoc.EMSA(rho=1.0),
    "newton": mfoc.NewtonCG(),
}


@pytest.mark.parametrize("made", ["ode", "cell"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_lowers_its_cost(name, made):
    if made == "ode":
        problem, cloud = mfoc.with_head(ode(), linear()), mfoc.Particles(drawn(N, WIDTH, seed=5), labels())
    else:
        problem, cloud = mfoc.with_head(cell(), readout, as_control(linear())), sequences()
    solution = mfoc.solve(problem, SOLVERS[name], cloud, steps=3)
    assert float(solution.value) < float(mfoc.evaluate(problem, problem, cloud).value)
    mfoc.testing.check_problem(problem, cloud)


def test_one_step_of_gradient_is_that_of_torch():
    layer, x = linear(), drawn(N, WIDTH, seed=5)
    problem = mfoc.with_head(ode(), layer)
    solution = mfoc.solve(problem, SOLVERS["gradient"], (x, labels()), steps=1)
    free = tree.detached(problem.controls, requires_grad=True)
    torch.autograd.backward(ode_by_hand(free, x))
    for mine, leaf in zip(tree.leaves(solution.controls), tree.leaves(free), strict=True):
        torch.testing.assert_close(mine, (leaf - 0.1 * leaf.grad).detach())
    layer.load_state_dict(solution.controls[-1])
    assert torch.equal(layer.weight, solution.controls[-1]["weight"])


@pytest.mark.parametrize("made", ["ode", "cell"])
def test_it_is_certified(made):
    if made == "ode":
        problem, cloud = mfoc.with_head(ode(), linear()), mfoc.Particles(drawn(N, WIDTH, seed=5), labels())
    else:
        problem, cloud = mfoc.with_head(cell(), readout, as_control(linear())), sequences()
    found = mfoc.certify(problem, problem, cloud, groups=2, starts=1)
    assert len(found.stages) == (T + 1 if made == "ode" else 1)
    gradient = mfoc.evaluate(problem, problem, cloud).gradient
    assert found.residual == pytest.approx(float(tree.norm(gradient)), rel=1e-6)


def test_costs_of_the_stages_and_of_the_head():
    """The running cost of the problem is that of its own stages; the head may have one."""
    x, layer = drawn(N, WIDTH, seed=5), linear()
    base = ode(running_cost=lambda t, x, u, z: u["W"].square().sum().expand(len(x)))
    controls = mfoc.with_head(base, layer).controls
    expected = ode_by_hand(controls, x) + sum(u["W"].square().sum() for u in controls[:-1]) / T
    cloud = mfoc.Particles(x, labels())
    torch.testing.assert_close(mfoc.evaluate(mfoc.with_head(base, layer), controls, cloud).value, expected)
    decayed = mfoc.with_head(base, layer, running_cost=mfoc.weight_decay(0.5))
    more = 0.25 * sum(leaf.square().sum() for leaf in tree.leaves(controls[-1]))
    torch.testing.assert_close(mfoc.evaluate(decayed, controls, cloud).value, expected + more)
    alone = mfoc.with_head(ode(), layer, running_cost=mfoc.weight_decay(0.5))
    torch.testing.assert_close(mfoc.evaluate(alone, controls, cloud).value, ode_by_hand(controls, x) + more)


@pytest.mark.parametrize("made", [ode, cell])
def test_bounds_of_the_stages_and_of_the_head(made):
    """Those of the problem stay where they are; those of the head are of the head alone."""
    base = dataclasses.replace(made(), bounds={"W": mfoc.Box(-5, 5)})
    cloud = sequences() if made is cell else mfoc.Particles(drawn(N, WIDTH, seed=5), labels())
    solver = mfoc.Gradient(lambda p: torch.optim.SGD(p, lr=20.0))
    small = {"W": torch.full((CLASSES, WIDTH), 0.01, dtype=D), "b": torch.zeros(CLASSES, dtype=D)}
    problem = mfoc.with_head(base, readout, small, bounds={"b": mfoc.Box(-0.1, 0.1)})
    found = mfoc.solve(problem, solver, cloud, steps=3).controls
    stages, head = (found["stages"], found["head"]) if made is cell else (found[0], found[-1])
    assert float(head["b"].abs().max()) == pytest.approx(0.1)
    assert float(head["W"].abs().max()) > 0.1
    assert float(stages["W"].abs().max()) <= 5
    only_head = mfoc.with_head(made(), readout, small, bounds=mfoc.Box(-0.1, 0.1))
    found = mfoc.solve(only_head, solver, cloud, steps=3).controls
    head = found["head"] if made is cell else found[-1]
    assert float(tree.ravel(head).abs().max()) == pytest.approx(0.1)
    only_stages = mfoc.with_head(base, readout, small)
    found = mfoc.solve(only_stages, solver, cloud, steps=3).controls
    assert float((found["head"] if made is cell else found[-1])["W"].abs().max()) > 0.1


def test_a_module_outside_its_bounds_starts_inside():
    problem = mfoc.with_head(ode(), linear(), bounds=mfoc.Box(-0.05, 0.05))
    assert float(tree.ravel(problem.controls[-1]).abs().max()) == pytest.approx(0.05)


def test_path_constraints_are_those_of_the_stages():
    """The largest state along the path is held; the head's output is not."""
    speed = mfoc.Inequality(lambda t, x, u, z: torch.stack([x[:, 0] - 0.1, -x[:, 0] - 0.1], 1))
    base = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda y, z: (y[:, 0] - 5.0).square(),
        [torch.zeros(1, dtype=D)] * 3,
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
        path=speed,
    )
    problem = mfoc.with_head(base, lambda x, v, z: x + v, torch.zeros(1, dtype=D))
    solution = mfoc.solve(problem, mfoc.AugmentedLagrangian(mfoc.NewtonCG()), torch.zeros(2, 1, dtype=D), steps=40)
    states = mfoc.rollout(problem, solution, torch.zeros(2, 1, dtype=D)).states
    assert max(float(x.abs().max()) for x in states[:3]) <= 0.1 + 1e-5
    torch.testing.assert_close(states[-1], torch.full((2, 1), 5.0, dtype=D), rtol=0, atol=1e-4)


def test_a_terminal_constraint_of_the_output():
    base = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda y, z: y.square().sum(1),
        [torch.ones(1, dtype=D)],
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
        terminal=mfoc.Equality(lambda y, z: y - 1),
    )
    with pytest.raises(mfoc.InvalidValue, match=r"c\(y, z\)"):
        mfoc.with_head(base, lambda x, v, z: v * x, torch.ones(1, dtype=D))
    problem = mfoc.with_head(dataclasses.replace(base, terminal=None), lambda x, v, z: v * x, torch.ones(1, dtype=D))
    problem = dataclasses.replace(problem, terminal=base.terminal)
    x = torch.ones(2, 1, dtype=D)
    solution = mfoc.solve(problem, mfoc.AugmentedLagrangian(mfoc.NewtonCG()), x, steps=12)
    torch.testing.assert_close(mfoc.rollout(problem, solution, x).states[-1], x, rtol=0, atol=1e-4)


def test_each_particle_with_a_head_of_its_own():
    base = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda y, z: (y - 1).square().sum(1),
        [torch.zeros(N, 2, dtype=D)],
        running_cost=lambda t, x, u, z: u.square().sum(1),
        per_particle=True,
    )
    problem = mfoc.with_head(base, lambda x, v, z: x * v, torch.ones(N, 2, dtype=D))
    x = drawn(N, 2, seed=6)
    free = tree.detached(problem.controls, requires_grad=True)
    by_hand = (((x + free[0]) * free[1] - 1).square().sum(1) + free[0].square().sum(1)).mean()
    slopes = torch.autograd.grad(by_hand, free)
    for mine, other in zip(mfoc.evaluate(problem, problem, x).gradient, slopes, strict=True):
        torch.testing.assert_close(mine, other)
    assert mfoc.solve(problem, mfoc.DDP(), x, steps=30).value < 1e-6 + float(by_hand.detach())
    with pytest.raises(mfoc.InvalidValue, match="weights are shared"):
        mfoc.with_head(base, nn.Linear(2, 1).double())


def test_a_diffusion_keeps_its_noise():
    """A control that enters the noise is seen behind a head, whose stage has none."""
    base = mfoc.continuous(
        lambda t, x, u, z: -x,
        lambda y, z: y.square().sum(1),
        [torch.ones(1, dtype=D)] * 3,
        diffusion=lambda t, x, u, z: u + 0 * x,
    )
    problem = mfoc.with_head(base, lambda x, v, z: x @ v, torch.ones(2, 1, dtype=D))
    x, z = drawn(8, 2), {"noise": drawn(8, 3, 2, seed=7)}
    assert torch.equal(problem.noise(3, x, torch.ones(2, 1, dtype=D), z), torch.zeros(8, 1, dtype=D))
    assert torch.equal(problem.noise(1, x, problem.controls[1], z), base.noise(1, x, base.controls[1], z))
    found = mfoc.certify(problem, problem, mfoc.Particles(x, z), groups=2, starts=1)
    assert "diffusion" in found.principle.name.lower()


def test_a_feedback_with_a_head_is_still_asked_about_its_rows():
    base = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda y, z: y.square().sum(1),
        [torch.zeros(1, dtype=D)] * 2,
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
    )
    policy = mfoc.linear_policy(lambda x: x, torch.zeros(1, 1, dtype=D))
    problem = mfoc.with_head(mfoc.feedback(base, policy), lambda x, v, z: x * v, torch.ones(1, dtype=D))
    with pytest.raises(mfoc.InvalidValue, match="row by row"):
        mfoc.solve(problem, SOLVERS["gradient"], drawn(N, 1), steps=1)
    rows = dataclasses.replace(base, running_cost=lambda t, x, u, z: u.square().sum(-1).expand(len(x)))
    loop = mfoc.feedback(rows, policy)
    problem = mfoc.with_head(loop, lambda x, v, z: x * v, torch.ones(1, dtype=D))
    solution = mfoc.solve(problem, SOLVERS["gradient"], drawn(N, 1), steps=2)
    assert mfoc.policy_of(loop, solution.controls["stages"])(0, drawn(N, 1)).shape == (N, 1)


def test_two_heads_one_after_another():
    torch.manual_seed(0)
    first, second = nn.Linear(WIDTH, 4).double(), nn.Linear(4, CLASSES).double()
    twice = mfoc.with_head(mfoc.with_head(ode(), first), second)
    once = mfoc.with_head(ode(), nn.Sequential(first, second))
    cloud = mfoc.Particles(drawn(N, WIDTH, seed=5), labels())
    torch.testing.assert_close(mfoc.evaluate(twice, twice, cloud).value, mfoc.evaluate(once, once, cloud).value)


def test_a_game_of_a_problem_with_a_head():
    problem = mfoc.with_head(ode(), linear())
    game = mfoc.Game.of(problem, mfoc.Ball(0.1))
    cloud = mfoc.Particles(drawn(N, WIDTH, seed=5), labels())
    solver = mfoc.Minimax(mfoc.maximisers.PGD(steps=2), lambda p: torch.optim.SGD(p, lr=0.1))
    assert float(mfoc.solve(game, solver, cloud, steps=2).value) > 0
    with pytest.raises(mfoc.InvalidType, match="give that one its head first"):
        mfoc.with_head(mfoc.Game.of(ode(), mfoc.Ball(0.1)), linear())
    with pytest.raises(mfoc.InvalidType, match="a head"):
        mfoc.hjb.fit(problem, drawn(N, WIDTH))


def test_batch_norm_in_a_head_makes_each_batch_a_population():
    head = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)).double()
    assert mfoc.with_head(ode(), head).interacting == "batch"
    assert mfoc.with_head(ode(), head.eval()).interacting is None


@pytest.mark.parametrize(
    ("head", "options", "error", "words"),
    [
        (readout, {}, mfoc.InvalidValue, "control is missing"),
        (lambda x, v: x, {"control": torch.ones(1)}, mfoc.InvalidType, r"called as head\(x, u, z\)"),
        ("linear", {}, mfoc.InvalidType, "head is"),
        (nn.Linear, {}, mfoc.InvalidType, "make an instance"),
        (nn.Linear(3, 2), {"control": torch.ones(1)}, mfoc.InvalidValue, "leave it out"),
        (nn.Dropout(0.5), {}, mfoc.InvalidValue, "ropout"),
        (nn.LazyLinear(2), {}, mfoc.InvalidValue, "azy"),
        (readout, {"control": torch.ones(1, dtype=torch.long)}, mfoc.InvalidType, "floating point"),
        (readout, {"control": nn.Linear(2, 2)}, mfoc.InvalidType, "control"),
        (nn.Linear(3, 2), {}, mfoc.InvalidValue, "float32"),
        (readout, {"control": torch.ones(1, dtype=D), "running_cost": 3.0}, mfoc.InvalidType, "running_cost"),
        (readout, {"control": torch.ones(1, dtype=D), "bounds": 3.0}, mfoc.InvalidType, "bounds"),
    ],
)
def test_what_is_refused(head, options, error, words):
    with pytest.raises(error, match=words):
        mfoc.with_head(ode(), head, **options)


def test_a_head_that_does_not_fit_is_explained():
    problem = mfoc.with_head(ode(), nn.Linear(WIDTH + 1, CLASSES).double())
    with pytest.raises(mfoc.InvalidValue, match=f"stage {T}"):
        mfoc.solve(problem, SOLVERS["gradient"], (drawn(N, WIDTH), labels()), steps=1)

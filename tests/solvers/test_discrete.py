"""Discrete weights: the step against Li & Hao's formulas entry by entry, Bop bit for bit, and digits learned."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.networks import packed
from tests.oracles.discrete import Bop
from tests.problems import D, generator, labels, normal, same_bits

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))


def network(activation=nn.ReLU, *, width=5, seed=0, dtype=D):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, width, bias=False), nn.BatchNorm1d(width), activation(),
        nn.Linear(width, 2, bias=False), nn.BatchNorm1d(2),
    ).to(dtype)  # fmt: skip


def case(solver, **more):
    problem = mfoc.from_module(network(**more), F.cross_entropy)
    return solver.discretised(problem), mfoc.Particles(normal(24, 3), labels(24, 2))


def stepped(solver, weight, slope):
    """One step on a problem whose H is <slope, u>."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + (slope * u["w"]).sum(), lambda x, z: x[:, 0], [{"w": weight}]
    )  # fmt: skip
    return solver.step(problem, problem.controls, solver.init(problem, problem.controls), mfoc.Particles(normal(2, 1)))


# ---- the step, entry by entry


def binary_by_hand(m, theta, rho):
    """Li & Hao (2018), algorithm 2, in the minimum convention."""
    wrong = [abs(a) for a, b in zip(m, theta, strict=True) if b != -(a > 0) + (a < 0)]
    bound = rho * max(wrong, default=0.0)
    return [
        -b if b != -(a > 0) + (a < 0) and abs(a) > bound else b for a, b in zip(m, theta, strict=True)
    ]  # fmt: skip


def ternary_by_hand(m, theta, rho, sparsity):
    wrong = [abs(a) for a, b in zip(m, theta, strict=True) if b != -(a > 0) + (a < 0)]
    bound, largest = rho * max(wrong, default=0.0), max(abs(a) for a in m)

    def cost(a, b, v):
        return a * v + bound / 2 * (v - b) ** 2 + sparsity * largest * abs(v)

    # of equal minimisers the present value
    return [min((-1, 0, 1), key=lambda v, a=a, b=b: (cost(a, b, v), v != b)) for a, b in zip(m, theta, strict=True)]


@pytest.mark.parametrize("rho", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("levels", ["binary", "ternary", "sparse"])
def test_a_step_is_the_papers(levels, rho):
    slope = normal(6, 7, seed=1)
    slope[0, :3] = 0  # no sign: such entries are wrong, and stay
    theta = torch.randint(-1, 2, (6, 7), generator=generator(2)).to(D)
    if levels == "binary":
        theta = torch.where(theta == 0, 1.0, theta)
    sparsity = 0.2 if levels == "sparse" else 0.0
    a = 0.75
    solver = mfoc.DiscreteMSA("binary" if levels == "binary" else "ternary", rho=rho, a=a, sparsity=sparsity)
    controls, state, info = stepped(solver, theta, slope)
    m = ((1 - a) * slope).flatten().tolist()
    expected = (
        binary_by_hand(m, theta.flatten().tolist(), rho)
        if levels == "binary"
        else ternary_by_hand(m, theta.flatten().tolist(), rho, sparsity)
    )
    assert controls[0]["w"].flatten().tolist() == expected
    assert info.extra["flips"] == int((controls[0]["w"] != theta).sum()) > 0
    assert torch.allclose(state["averages"][0], (1 - a) * slope, rtol=1e-15)


def test_the_average_forgets_more_slowly_epoch_by_epoch():
    solver = mfoc.DiscreteMSA(rho=None, threshold=1e9, a=0.5, decay=0.5, per=2)  # nothing flips: the slope is the same
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u[0].sum(), lambda x, z: x[:, 0], [torch.ones(1, 2, dtype=D)]
    )  # fmt: skip
    solution = mfoc.solve(problem, solver, normal(3, 1), steps=5)
    expected = 0.0
    for share in (0.5, 0.5, 0.25, 0.25, 0.125):
        expected = (1 - share) * expected + share
    assert solution.last.state["averages"][0].flatten()[0].item() == pytest.approx(expected, rel=1e-14)


def test_minimising_h_with_everything_wrong_reaches_its_minimiser():
    """With rho = 0 and a linear H one step is the minimum: u = -sign(slope)."""
    slope = normal(4, 5, seed=3)
    controls, _, _ = stepped(mfoc.DiscreteMSA(rho=0.0), torch.ones(4, 5, dtype=D), slope)
    assert torch.equal(controls[0]["w"], -slope.sign())


def test_with_a_fixed_threshold_it_is_bop_bit_for_bit():
    gamma, tau, steps = 0.3, 2e-3, 12
    a = 1 - gamma
    solver = mfoc.DiscreteMSA(rho=None, threshold=tau, a=a, others=ADAM)
    problem, cloud = case(solver)
    solution = mfoc.solve(problem, solver, cloud, steps=steps)
    controls = mfoc.tree.copy(problem.controls)
    weights = [controls[0]["weight"], controls[3]["weight"]]
    scales = [leaf.requires_grad_() for t in (1, 4) for leaf in controls[t].values()]
    bop, adam = Bop(weights, 1 - a, tau), torch.optim.Adam(scales, lr=1e-2)
    flips = []
    for _ in range(steps):
        gradient = mfoc.evaluate(problem, controls, cloud).gradient
        for leaf, slope in zip(scales, [leaf for t in (1, 4) for leaf in gradient[t].values()], strict=True):
            leaf.grad = slope
        before = mfoc.tree.copy(weights)
        bop.step([gradient[0]["weight"], gradient[3]["weight"]])
        adam.step()
        flips.append(sum(int((new != old).sum()) for new, old in zip(weights, before, strict=True)))
    assert sum(flips) > 3
    assert [record["flips"] for record in solution.history] == flips
    assert same_bits(solution.controls, mfoc.tree.detached(controls))


# ---- the laws of solvers


@pytest.mark.parametrize("levels", ["binary", "ternary"])
def test_it_keeps_the_laws_of_solvers(levels):
    solver = mfoc.DiscreteMSA(levels, others=ADAM)
    mfoc.testing.check_solver(solver, *case(solver))


def test_others_move_as_their_solver_moves_them():
    """Where no discrete entry changes the rest is ``Gradient``, LBFGS's evaluations of its own included."""
    lbfgs = mfoc.Gradient(partial(torch.optim.LBFGS, max_iter=4))
    solver = mfoc.DiscreteMSA(rho=None, threshold=1e9, others=lbfgs)
    problem, cloud = case(solver)
    held = [{} if "weight" in u and u["weight"].dim() > 1 else u for u in problem.controls]

    def dynamics(t, x, u, z):
        return problem.dynamics(t, x, u or problem.controls[t], z)

    alone = mfoc.Problem(dynamics, problem.terminal_cost, held, interacting="batch")
    expected = mfoc.solve(alone, lbfgs, cloud, steps=3)
    found = mfoc.solve(problem, solver, cloud, steps=3)
    assert same_bits(
        [u for u, free in zip(found.controls, held, strict=True) if free], [u for u in expected.controls if u]
    )


def test_resuming_is_the_uninterrupted_solve():
    solver = mfoc.DiscreteMSA(per=2, others=ADAM)
    problem, cloud = case(solver)
    batches = mfoc.population(cloud, batch_size=8, seed=3)
    whole = mfoc.solve(problem, solver, batches, steps=8)
    half = mfoc.solve(problem, solver, batches, steps=3)
    assert same_bits(mfoc.solve(problem, solver, batches, steps=8, start=half).controls, whole.controls)


def test_without_other_leaves_there_is_no_optimiser():
    problem = mfoc.from_module(nn.Sequential(nn.Linear(3, 2, bias=False)).double(), F.cross_entropy)
    solver = mfoc.DiscreteMSA()
    solution = mfoc.solve(solver.discretised(problem), solver, (normal(9, 3), labels(9, 2)), steps=3)
    assert set(solution.controls[0]["weight"].unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_weights_is_kept(dtype):
    solver = mfoc.DiscreteMSA("ternary", others=ADAM)
    problem, cloud = case(solver, dtype=dtype)
    cloud = cloud.to(dtype)
    solution = mfoc.solve(problem, solver, cloud, steps=2)
    assert {leaf.dtype for leaf in mfoc.tree.leaves(solution.controls)} == {dtype}


def test_the_average_forgets_in_any_dtype():
    """1 - a is below the resolution of bfloat16."""
    slope = torch.full((1, 2), 0.25, dtype=torch.bfloat16)
    solver = mfoc.DiscreteMSA(a=0.999, rho=None, threshold=1e9)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + (slope * u["w"]).sum(), lambda x, z: x[:, 0], [{"w": torch.ones_like(slope)}]
    )  # fmt: skip
    cloud = torch.zeros(2, 1, dtype=torch.bfloat16)
    solution = mfoc.solve(problem, solver, cloud, steps=200)
    assert solution.last.state["averages"][0].flatten().tolist() == pytest.approx(
        [0.25 * (1 - 0.999**200)] * 2, rel=1e-3
    )


# ---- where it starts


def test_discretised_starts():
    weight = torch.tensor([[0.0, -0.2, 1.0], [-2.0, 0.1, 0.5]], dtype=D)
    problem = mfoc.Problem(lambda t, x, u, z: x, lambda x, z: x[:, 0], [{"w": weight, "b": weight[0]}])
    binary = mfoc.DiscreteMSA().discretised(problem).controls[0]
    assert binary["w"].tolist() == [[1, -1, 1], [-1, 1, 1]]
    assert torch.equal(binary["b"], weight[0])
    ternary = mfoc.DiscreteMSA("ternary").discretised(problem).controls[0]  # 0.7 E|w| = 0.443
    assert ternary["w"].tolist() == [[0, 0, 1], [-1, 0, 1]]
    assert torch.equal(problem.controls[0]["w"], weight)
    only = mfoc.DiscreteMSA(discrete=lambda name: name == "0.b").discretised(problem).controls[0]
    assert torch.equal(only["w"], weight)
    assert only["b"].tolist() == [1, -1, 1]


def test_weights_that_are_not_discrete_are_refused():
    problem = mfoc.from_module(network(), F.cross_entropy)
    with pytest.raises(mfoc.InvalidValue, match=r"'0.weight' holds other values .* solver.discretised\(problem\)"):
        mfoc.solve(problem, mfoc.DiscreteMSA(), (normal(6, 3), labels(6, 2)), steps=1)


@pytest.mark.parametrize("where", ["activation", "decay", "batch norm"])
def test_h_that_is_not_affine_is_refused_with_the_cure(where):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if where == "batch norm" else nn.ReLU(), nn.Linear(4, 2))
    problem = mfoc.from_module(
        net.double(), F.cross_entropy,
        stages=None if where == "decay" else [["0", "1"], "2"],
        running_cost=mfoc.weight_decay(0.1) if where == "decay" else None,
    )  # fmt: skip
    solver = mfoc.DiscreteMSA("ternary")
    what = "running_cost" if where == "decay" else "dynamics"
    with pytest.raises(mfoc.InvalidValue, match=f"stage 0: {what} is not affine in the discrete weights.*discrete="):
        mfoc.solve(solver.discretised(problem), solver, (normal(6, 3), labels(6, 2)), steps=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": "quaternary"}, "levels is 'quaternary'; expected one of"),
        ({"rho": 1.0}, "rho is 1.0"),
        ({"threshold": 1e-3}, "one of them makes rho_k"),
        ({"rho": None}, "one of them makes rho_k"),
        ({"a": 1.0}, "a is 1.0"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"per": 0}, "per is 0"),
        ({"sparsity": 0.1}, "binary weights have no zero"),
    ],
    ids=["levels", "rho", "both", "neither", "a", "decay", "per", "sparsity"],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(mfoc.InvalidValue, match=message):
        mfoc.DiscreteMSA(**settings)


def test_no_discrete_leaf_is_refused():
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x[:, 0], [torch.ones(1)])
    with pytest.raises(mfoc.InvalidValue, match="no leaf of the controls has two axes"):
        mfoc.DiscreteMSA().discretised(problem)


# ---- what is learned


@pytest.mark.parametrize("levels", ["binary", "ternary"])
def test_digits_are_learned(levels):
    """A packed network of 64 x 64 discrete weights classifies digits it has not seen, as it does unpacked."""
    sklearn = pytest.importorskip("sklearn.datasets")
    images, targets = sklearn.load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 8 - 1, torch.from_numpy(targets)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10, bias=False), nn.BatchNorm1d(10)
    )
    solver = mfoc.DiscreteMSA(levels, a=0.99, per=13, others=ADAM)
    problem = solver.discretised(mfoc.from_module(net, F.cross_entropy))
    batches = mfoc.population((x[:1300], y[:1300]), batch_size=100, seed=0)
    solution = mfoc.solve(problem, solver, batches, steps=13 * 15)
    solved = mfoc.to_module(net, solution)
    mfoc.networks.refresh_averages(solved, x[:1300].split(100))
    small = packed.pack(solved.eval())
    with torch.no_grad():
        assert torch.equal(small(x[1300:]), solved(x[1300:]))
        assert float((small(x[1300:]).argmax(1) == y[1300:]).float().mean()) > 0.85

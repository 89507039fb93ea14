"""What a problem is: pure, evaluated per particle, on states and controls of any structure."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch

import mfoc
from tests.problems import CATALOGUE, INTERACTING, D, distance, leaves, normal, same_bits


@pytest.mark.parametrize("name", CATALOGUE)
def test_catalogue_validates_and_is_pure(name):
    problem, particles = CATALOGUE[name]()
    inputs = [problem.controls, particles.state]
    before = mfoc.tree.copy(inputs)
    problem.validate(particles)
    first = mfoc.evaluate(problem, problem.controls, particles)
    second = mfoc.evaluate(problem, problem.controls, particles)
    assert same_bits(before, inputs)
    assert same_bits(tuple(first), tuple(second))


@pytest.mark.parametrize("name", CATALOGUE)
def test_permuted_particles_have_permuted_costs(name):
    problem, particles = CATALOGUE[name]()
    order = torch.randperm(len(particles), generator=torch.Generator().manual_seed(3))
    cost = mfoc.rollout(problem, problem.controls, particles).cost
    permuted = mfoc.rollout(problem, problem.controls, particles[order]).cost
    torch.testing.assert_close(permuted, cost[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in INTERACTING])
def test_particles_do_not_interact(name):
    problem, particles = CATALOGUE[name]()
    together = mfoc.rollout(problem, problem.controls, particles).cost
    alone = [mfoc.rollout(problem, problem.controls, particles[i : i + 1]).cost for i in range(len(particles))]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", INTERACTING)
def test_interacting_particles_do_interact(name):
    problem, particles = CATALOGUE[name]()
    together = mfoc.rollout(problem, problem.controls, particles).cost
    assert not torch.allclose(mfoc.rollout(problem, problem.controls, particles[:4]).cost, together[:4])


def test_value_is_the_sum_of_costs():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x,
        [torch.ones(()), torch.ones(())],
        running_cost=lambda t, x, u, z: t * x,
    )
    trajectory = mfoc.rollout(problem, problem.controls, mfoc.Particles(torch.tensor([1.0, 5.0])))
    assert [x.tolist() for x in trajectory.states] == [[1, 5], [2, 6], [3, 7]]
    assert trajectory.cost.tolist() == [0 * 1 + 1 * 2 + 3, 0 * 5 + 1 * 6 + 7]


def test_stages_and_schedule():
    problem, _ = CATALOGUE["tied"]()
    assert problem.stages == 4
    assert problem.schedule(problem.controls, 3) is problem.controls
    custom = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x,
        torch.arange(2.0),
        horizon=5,
        schedule=lambda controls, t: controls[t % 2],
    )
    assert mfoc.rollout(custom, custom.controls, mfoc.Particles(torch.zeros(1))).cost.item() == 2
    assert mfoc.evaluate(custom, custom.controls, mfoc.Particles(torch.zeros(1))).gradient.tolist() == [3, 2]
    recomputed = mfoc.evaluate(custom, custom.controls, mfoc.Particles(torch.zeros(1)), recompute=True)
    assert recomputed.gradient.tolist() == [3, 2]


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


CONTAINERS = {
    "list": [torch.ones(2), torch.ones(2)],
    "tuple": (torch.ones(2), torch.ones(2)),
    "ordered": [OrderedDict(b=torch.ones(2), a=torch.ones(2)), OrderedDict(b=torch.ones(2), a=torch.ones(2))],
    "named": [Pair(torch.ones(2), torch.ones(2)), Pair(torch.ones(2), torch.ones(2))],
    "stages in a named tuple": Pair(torch.ones(2), torch.ones(2)),
    "requires grad": [torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)],
    "parameters": [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))],
    "one tensor twice": [torch.ones(2)] * 2,
    "views of one tensor": list(torch.ones(2, 2)),
    "expanded": [torch.ones(1).expand(2), torch.ones(1).expand(2)],
    "transposed": [torch.ones(2, 2).mT[0], torch.ones(2, 4).mT[1]],
}
SOLVERS = {
    "gradient": mfoc.Gradient(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5)),
    "recompute": mfoc.Gradient(lambda p: torch.optim.Adam(p, lr=0.1), recompute=True),
    "msa": mfoc.MSA(mfoc.minimisers.Descent(0.05, steps=2)),
    "emsa": mfoc.EMSA(1.0, inner=mfoc.minimisers.LBFGS(4, trials=8), adaptive=True),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_and_dtypes(container, solver, dtype):
    controls = mfoc.tree.map(lambda leaf: leaf.to(dtype) if leaf.dtype != dtype else leaf, CONTAINERS[container])
    before = mfoc.tree.copy(controls)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + leaves(u)[0],
        lambda x, z: (x - 5).square().sum(1),
        controls,
        running_cost=lambda t, x, u, z: leaves(u)[0].square().sum().expand(len(x)),
    )
    solution = mfoc.solve(problem, SOLVERS[solver], torch.zeros(1, 2, dtype=dtype), steps=3)
    assert mfoc.tree.same_structure(solution.controls, controls)
    assert same_bits(before, controls)
    assert all(leaf.dtype == dtype and not leaf.requires_grad for leaf in leaves(solution.controls))
    assert solution.status is mfoc.Status.MAX_STEPS
    first, second = leaves(solution.controls)[0], leaves(solution.controls[1])[0]
    torch.testing.assert_close(first, second, rtol=0.02, atol=0.02)
    assert not torch.equal(first, torch.ones_like(first))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(1,), (5,), (1, 3), (4, 1, 2)], ids=str)
def test_odd_shapes(shape, solver):
    problem = mfoc.Problem(
        lambda t, x, u, z: x.cos() + u,
        lambda x, z: x.square().reshape(len(x), -1).sum(1),
        [torch.tensor(0.3, dtype=D)] * 3,
        running_cost=lambda t, x, u, z: u.square().expand(len(x)),
    )
    particles = mfoc.Particles(normal(*shape))
    problem.validate(particles)
    plain = mfoc.evaluate(problem, problem.controls, particles)
    assert (
        distance(plain.gradient, mfoc.evaluate(problem, problem.controls, particles, recompute=True).gradient) < 1e-12
    )
    solution = mfoc.solve(problem, SOLVERS[solver], particles, steps=3)
    assert solution.value < plain.value
    assert all(leaf.shape == () for leaf in solution.controls)


def test_complex_states_have_exact_costates():
    problem = mfoc.Problem(
        lambda t, x, u, z: x * torch.exp(1j * u) + x.conj() * u,
        lambda x, z: (x - 1).abs().square().sum(1),
        [normal(2, seed=t) for t in range(3)],
    )
    particles = mfoc.Particles(torch.complex(normal(4, 2), normal(4, 2, seed=1)))
    plain = mfoc.evaluate(problem, problem.controls, particles)
    by_costates = mfoc.evaluate(problem, problem.controls, particles, recompute=True)
    assert distance(plain.gradient, by_costates.gradient) < 1e-12
    start = plain.value
    assert mfoc.solve(problem, mfoc.EMSA(5.0, adaptive=True), particles, steps=5).value < start


def test_an_impure_problem_is_refused():
    def written(t, x, u, z):
        return x.add_(u)

    def random(t, x, u, z):
        return x + u + torch.rand(())

    for dynamics, word in ((written, "in-place"), (random, "random")):
        problem = mfoc.Problem(dynamics, lambda x, z: x, [torch.ones(())])
        with pytest.raises(mfoc.InvalidValue, match=word):
            problem.validate(mfoc.Particles(torch.ones(3)))

"""Pontryagin's identities: costates are sensitivities, and E dH/du is dJ/du."""

import pytest
import torch

import mfoc
from mfoc.pontryagin import adjoint
from tests.oracles.training import augmented_hamiltonian, cost_from, floats, gradient
from tests.problems import CATALOGUE, INTERACTING, D, distance, leaves, normal


@pytest.mark.parametrize("name", CATALOGUE)
def test_gradient_of_pontryagin_is_autograd(name):
    problem, particles = CATALOGUE[name]()
    expected = gradient(problem, problem.controls, particles)
    assert max(float(leaf.abs().max()) for leaf in leaves(expected) if leaf.numel()) > 1e-3
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    assert distance(adjoint(problem, problem.controls, trajectory, particles)[1], expected) < 1e-12
    for recompute in (False, True):
        found = mfoc.evaluate(problem, problem.controls, particles, recompute=recompute)
        assert mfoc.tree.same_structure(found.gradient, problem.controls)
        assert distance(found.gradient, expected) < 1e-12
        assert float(found.value) == pytest.approx(float(trajectory.cost.mean()), rel=1e-14)
        assert not found.value.requires_grad


@pytest.mark.parametrize("name", CATALOGUE)
def test_costates_are_the_sensitivity_to_an_injected_perturbation(name):
    """p_t(i) = N dJ/d(delta_i) where delta is added to the state at stage t."""
    problem, particles = CATALOGUE[name]()
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    found = mfoc.costates(problem, problem.controls, trajectory, particles)
    assert len(found) == problem.stages + 1
    for t in range(problem.stages + 1):
        x = trajectory.states[t]
        assert mfoc.tree.same_structure(found[t], x)
        delta = [torch.zeros_like(leaf, requires_grad=True) for leaf in floats(x)]
        stream = iter(delta)
        moved = mfoc.tree.map(
            lambda leaf, stream=stream: leaf.detach() + next(stream) if leaf.is_floating_point() else leaf, x
        )
        cost = cost_from(problem, t, moved, problem.controls, particles.data).mean()
        expected = torch.autograd.grad(cost, delta)
        assert distance(floats(found[t]), [len(particles) * g for g in expected]) < 1e-12


@pytest.mark.parametrize("name", CATALOGUE)
def test_hamiltonian_definition_and_stationarity(name):
    """H = L + <p, f>, and E dH/du_t is the gradient of J in a per-stage control."""
    problem, particles = CATALOGUE[name]()
    z = particles.data
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    costates = mfoc.costates(problem, problem.controls, trajectory, particles)
    slopes = mfoc.evaluate(problem, problem.controls, particles).gradient
    for t in range(problem.stages):
        x, p = trajectory.states[t], costates[t + 1]
        u = mfoc.tree.detached(problem.schedule(problem.controls, t), requires_grad=True)
        found = mfoc.hamiltonian(problem, t, x, p, u, z)
        expected = augmented_hamiltonian(problem, t, u, trajectory.states, costates, z)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        if problem.schedule is mfoc.per_stage and leaves(u):
            slope = torch.autograd.grad(found.mean(), leaves(u))
            assert distance(list(slope), leaves(slopes[t])) < 1e-12


@pytest.mark.parametrize("name", INTERACTING)
def test_interaction_is_not_lost(name):
    """Dropping the derivative through the empirical law changes the gradient, so the identity is not vacuous."""
    problem, particles = CATALOGUE[name]()
    whole = mfoc.evaluate(problem, problem.controls, particles).gradient
    halves = [mfoc.evaluate(problem, problem.controls, particles[i::2]).gradient for i in (0, 1)]
    mean = mfoc.tree.map(lambda a, b: (a + b) / 2, *halves)
    assert distance(whole, mean) > 1e-3


@pytest.mark.parametrize("name", CATALOGUE)
def test_permutation_of_particles_changes_nothing(name):
    problem, particles = CATALOGUE[name]()
    order = torch.randperm(len(particles), generator=torch.Generator().manual_seed(1))
    plain = mfoc.evaluate(problem, problem.controls, particles)
    permuted = mfoc.evaluate(problem, problem.controls, particles[order], recompute=True)
    assert float(plain.value) == pytest.approx(float(permuted.value), rel=1e-13)
    assert distance(plain.gradient, permuted.gradient) < 1e-12


def test_integer_leaves_get_zero_costates():
    problem, particles = CATALOGUE["pytrees"]()
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    for p in mfoc.costates(problem, problem.controls, trajectory, particles):
        assert p["token"].dtype == torch.int64
        assert not p["token"].any()


def test_token_states_have_controls_and_no_costate():
    net = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Flatten(), torch.nn.Linear(6, 2)).double()
    problem = mfoc.from_module(net, torch.nn.functional.cross_entropy)
    particles = mfoc.Particles(torch.arange(12).view(6, 2) % 5, torch.arange(6) % 2)
    expected = gradient(problem, problem.controls, particles)
    assert distance(mfoc.evaluate(problem, problem.controls, particles, recompute=True).gradient, expected) < 1e-12
    for solver in (mfoc.MSA(mfoc.minimisers.Descent(0.1)), mfoc.EMSA(1.0, adaptive=True)):
        history = mfoc.solve(problem, solver, particles, steps=3).history
        assert history[-1]["value"] < history[0]["value"]


def test_an_unused_control_has_zero_gradient():
    problem = mfoc.Problem(lambda t, x, u, z: x if t else x * u, lambda x, z: x, [torch.ones((), dtype=D)] * 2)
    for recompute in (False, True):
        found = mfoc.evaluate(problem, problem.controls, mfoc.Particles(normal(3)), recompute=recompute)
        assert float(found.gradient[1]) == 0
        assert float(found.gradient[0]) != 0


OTHER_CONTROLS = {
    "of another shape": lambda own: [torch.zeros(5, dtype=leaf.dtype) for leaf in own],
    "of no stage": lambda own: [],
    "numbers": lambda own: [1.0] * len(own),
    "without data": lambda own: [leaf.to("meta") for leaf in own],
    "sparse": lambda own: [leaf.to_sparse() for leaf in own],
}


@pytest.mark.parametrize("door", ["rollout", "evaluate", "costates", "coupling"])
@pytest.mark.parametrize("kind", OTHER_CONTROLS)
def test_controls_that_are_not_the_problems_are_refused_by_name(kind, door):
    made, cloud = small(), mfoc.Particles(torch.ones(3, 2))
    other = OTHER_CONTROLS[kind](made.controls)
    calls = {
        "rollout": lambda: mfoc.rollout(made, other, cloud),
        "evaluate": lambda: mfoc.evaluate(made, other, cloud),
        "costates": lambda: mfoc.costates(made, other, mfoc.rollout(made, made.controls, cloud), cloud),
        "coupling": lambda: mfoc.interacting.coupling(made, cloud, controls=other),
    }
    with pytest.raises((mfoc.InvalidType, mfoc.InvalidValue), match="controls"):
        calls[door]()


def small():
    return mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), [torch.zeros(2), torch.zeros(2)])


def test_a_trajectory_of_other_particles_is_refused():
    made = small()
    path = mfoc.rollout(made, made.controls, mfoc.Particles(torch.ones(3, 2)))
    with pytest.raises(mfoc.InvalidValue, match=r"trajectory.states\[0\] has shape \(3, 2\) and there are 4"):
        mfoc.costates(made, made.controls, path, mfoc.Particles(torch.ones(4, 2)))


@pytest.mark.parametrize("p", [torch.ones(3, 3), torch.ones(4, 2), torch.ones(3, 2).to_sparse()])
def test_a_costate_that_is_not_shaped_as_the_next_state_is_refused(p):
    with pytest.raises((mfoc.InvalidType, mfoc.InvalidValue), match="p is "):
        mfoc.hamiltonian(small(), 0, torch.ones(3, 2), p, torch.zeros(2))

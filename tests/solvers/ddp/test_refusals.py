"""What DDP does not solve it refuses, and names what does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mfoc
from tests.problems import D, normal, tied
from tests.robots import in_torch


def refused(problem, cloud, words, solver=None, kind=mfoc.InvalidValue):
    with pytest.raises(kind, match=words):
        mfoc.solve(problem, solver or mfoc.DDP(), cloud, steps=1)


def shared(n, d, **more):
    """A control shared by n particles in d dimensions."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), [torch.zeros(d, dtype=D) for _ in range(2)], **more
    )
    return problem, mfoc.Particles(normal(n, d))


def test_a_tied_control():
    refused(*tied(), "NewtonCG")


def test_a_joint_state_that_is_too_large():
    refused(*shared(101, 2), "202 dimensions.*NewtonCG")


def test_bounds_other_than_a_box():
    refused(*shared(3, 2, bounds=mfoc.Ball(1.0, "l2")), "EMSA")


def test_a_box_without_a_point():
    with pytest.raises(mfoc.InvalidValue):
        shared(3, 2, bounds=mfoc.Box(1.0, -1.0))


def test_particles_that_interact():
    problem, cloud = in_torch("unicycle", 3)
    coupled = replace(problem, dynamics=lambda t, x, u, z: problem.dynamics(t, x, u, z) - 0.1 * mfoc.mean(x))
    refused(coupled, cloud, "NewtonCG")


def test_a_state_of_integers():
    problem, cloud = shared(3, 2)
    whole = replace(
        problem,
        dynamics=lambda t, x, u, z: {"x": x["x"] + u, "token": x["token"]},
        terminal_cost=lambda x, z: x["x"].square().sum(1),
    )
    refused(whole, mfoc.Particles({"x": cloud.state, "token": torch.arange(3)}), "token", kind=mfoc.InvalidType)


def test_states_of_another_horizon():
    problem, cloud = in_torch("unicycle")
    refused(problem, cloud, "states has 2 entries", mfoc.DDP(states=[cloud.state] * 2))


def test_particles_in_a_closure():
    """What belongs to a particle comes in z: lanes are any number of particles."""
    problem, cloud = in_torch("unicycle", 3)
    goal = normal(3, 3)
    refused(replace(problem, terminal_cost=lambda x, z: (x - goal).square().sum(1)), cloud, "comes in the data z")


@pytest.mark.parametrize("fields", [{"second_order": 1}, {"states": 3.0}], ids=["second_order", "states"])
def test_fields(fields):
    with pytest.raises(mfoc.InvalidType):
        mfoc.DDP(**fields)


def test_an_equilibrium():
    problem, cloud = shared(3, 2)
    refused(mfoc.Equilibrium(problem), cloud, "Equilibrium|equilibrium|gradient")

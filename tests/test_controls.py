"""Controls are taken from whatever holds them: a solution, an iterate, a problem; clouds from what `solve` takes."""

from functools import partial

import pytest
import torch

import mfoc
from tests.problems import D, distance, mlp, mlp_net, normal, same_bits, tied

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


@pytest.fixture(scope="module")
def solved():
    problem, cloud = mlp()
    return problem, cloud, mfoc.solve(problem, SGD, cloud, steps=3)


@pytest.mark.parametrize("holder", ["solution", "iterate", "controls"])
def test_doors_that_take_controls(solved, holder):
    problem, cloud, solution = solved
    held = {"solution": solution, "iterate": solution.last, "controls": solution.controls}[holder]
    assert mfoc.controls_of(held) is solution.controls
    plain = mfoc.rollout(problem, solution.controls, cloud)
    assert same_bits(mfoc.rollout(problem, held, cloud).states, plain.states)
    assert same_bits(mfoc.evaluate(problem, held, cloud).value, torch.tensor(solution.value, dtype=D))
    assert same_bits(
        mfoc.costates(problem, held, plain, cloud), mfoc.costates(problem, solution.controls, plain, cloud)
    )
    certificate = mfoc.certify(problem, held, cloud, lanczos=2, groups=2)
    assert certificate.value == pytest.approx(solution.value, rel=1e-12)
    trained = mfoc.to_module(mlp_net(), held)
    assert distance(trained(cloud.state), plain.states[-1]) < 1e-15
    formulation = mfoc.Formulation(problem, mfoc.population(cloud), mfoc.controls_of)
    assert str(formulation.certify(held, lanczos=2, groups=2)) == str(certificate)
    assert formulation.readout(held) is solution.controls


def test_a_problem_holds_its_initial_controls(solved):
    problem, cloud, _ = solved
    assert mfoc.controls_of(problem) is problem.controls
    assert same_bits(mfoc.rollout(problem, problem, cloud).cost, mfoc.rollout(problem, problem.controls, cloud).cost)


def test_a_tied_control_may_be_one_tensor():
    u = torch.zeros(2, dtype=D)
    assert mfoc.controls_of(u) is u
    problem, cloud = tied()
    assert same_bits(mfoc.rollout(problem, problem, cloud).cost, mfoc.rollout(problem, problem.controls, cloud).cost)


@pytest.mark.parametrize("nothing", [None, 3, "controls", object(), mfoc.Solution, lambda: 0])
def test_what_holds_no_controls(nothing):
    with pytest.raises(mfoc.InvalidType, match="expected what solve"):
        mfoc.controls_of(nothing)


def test_resuming_from_a_solution(solved):
    problem, cloud, solution = solved
    whole = mfoc.solve(problem, SGD, cloud, steps=5)
    assert same_bits(mfoc.solve(problem, SGD, cloud, steps=5, start=solution).controls, whole.controls)
    resumed = next(mfoc.iterate(problem, SGD, cloud, start=solution))
    assert resumed.step == 4
    with pytest.raises(mfoc.InvalidType, match="start is a list"):
        mfoc.solve(problem, SGD, cloud, steps=5, start=solution.controls)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_roll_outs_take_what_solve_takes(solved, batch_size):
    problem, cloud, solution = solved
    plain = mfoc.rollout(problem, solution, cloud)
    pair = (cloud.state, cloud.data)
    dataset = torch.utils.data.TensorDataset(*pair)
    for source in (pair, dataset, mfoc.population(pair, batch_size=batch_size), torch.utils.data.DataLoader(dataset)):
        assert same_bits(mfoc.rollout(problem, solution, source).cost, plain.cost)
        assert same_bits(mfoc.evaluate(problem, solution, source).gradient, mfoc.evaluate(problem, solution, cloud)[1])
    mfoc.testing.check_problem(problem, pair)
    mfoc.testing.check_solver(SGD, problem, pair)


def test_a_wrong_population_is_refused_at_the_door(solved):
    problem, _, solution = solved
    for door in (mfoc.rollout, mfoc.evaluate):
        with pytest.raises(mfoc.InvalidType, match="expected a tensor, a pair"):
            door(problem, solution, object())
        with pytest.raises(mfoc.InvalidValue, match="expected a pair"):
            door(problem, solution, (normal(3, 3),) * 3)

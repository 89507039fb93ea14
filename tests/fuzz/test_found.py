"""What fuzzing found once, one case of each kind."""

from __future__ import annotations

import pytest
import torch

import mfoc
from mfoc import hjb
from mfoc.analysis import propagation
from paradigms import adversarial, bayesian, meta
from tests.fuzz import good, hostile


class _Stepless:
    """A solver whose step returns no iterate."""

    def init(self, problem, controls):
        return {}

    def step(self, problem, controls, state, particles):
        return {"controls": controls}


SIGNAL = propagation.SignalPropagation("tanh", 1.5, 0.1)
FOUND = {
    "an argument that was ignored": (
        lambda: bayesian.log_density(lambda x: -x.square().sum(-1), like=torch.zeros(2), temperature="abc"),
        "temperature is 'abc'",
    ),
    "an argument that only another source uses": (
        lambda: bayesian.log_density(lambda x: -x.square().sum(-1), like=torch.zeros(2), temperature=2.0),
        "temperature cannot be used with a function",
    ),
    "None in place of a tensor": (lambda: bayesian.discrepancy(torch.ones(4, 2), None), "score is a NoneType"),
    "tensors of two shapes": (lambda: bayesian.discrepancy(torch.ones(4, 2), torch.ones(4, 3)), "score is .*as x"),
    "NaN in place of numbers": (lambda: SIGNAL.length_map(float("nan")), "q is nan; expected a finite number"),
    "a sparse tensor": (lambda: SIGNAL.length_map(torch.eye(2).to_sparse()), "q is a sparse tensor"),
    "a seed of 65 bits": (lambda: mfoc.population(torch.ones(4, 2), seed=2**64), "seed is .* of at most"),
    "a count of 64 bits": (
        lambda: mfoc.solve(good.problem(), good.solver(), good.cloud(), steps=2**63),
        "steps is 9223372036854775808; expected",
    ),
    "a seed that is no integer": (lambda: good.posterior().weights(3, seed=1.5), "seed is 1.5"),
    "inputs that are no tensor": (lambda: good.posterior().outputs("abc"), "x is a str"),
    "no count": (lambda: good.density().initial(-1), "n is -1"),
    "a class in place of a problem": (lambda: mfoc.rollout(mfoc.Problem, [], good.cloud()), "problem is the class"),
    "a grid of NaN": (lambda: hjb.Grid((torch.full((9,), torch.nan),)), r"axes\[0\] holds NaN"),
    "a rule of other arguments": (
        lambda: mfoc.from_module(good.net(), torch.nn.functional.cross_entropy, bounds=lambda: None),
        "bounds takes",
    ),
    "what cannot be iterated": (lambda: mfoc.networks.refresh_averages(good.net(), 3), "batches is an int"),
    "a solver that says yes to all": (
        lambda: mfoc.solve(good.problem(), hostile.Yes(), good.cloud(), steps=1),
        "in_place returned a Yes",
    ),
    "a solver whose step returns something else": (
        lambda: mfoc.solve(good.problem(), _Stepless(), good.cloud(), steps=1),
        r"solver\.step returned a dict; expected three things",
    ),
    "a loss that would draw its weights": (
        lambda: propagation.diagnose(good.net(), torch.ones(4, 3), torch.nn.LazyLinear(1)),
        "loss is a lazy module",
    ),
    "sparse weights of a policy": (
        lambda: mfoc.linear_policy(lambda x: x, torch.eye(2).to_sparse_csr()),
        "weight is a sparse tensor",
    ),
    "nested points": (
        lambda: good.density().unravel(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        "x is a nested tensor",
    ),
    "sparse points": (lambda: good.density().unravel(torch.eye(2).to_sparse()), "x is a sparse tensor"),
    "a scale whose square leaves the floats": (
        lambda: bayesian.discrepancy(torch.eye(3), torch.eye(3), length=1e-300),
        "x and score at length 1e-300 leaves the range",
    ),
    "a scale whose square leaves the dtype": (
        lambda: bayesian.discrepancy(torch.eye(3), torch.eye(3), length=1e-30),
        "leaves the range of torch.float32",
    ),
    "an array in place of a flag, of tasks": (
        lambda: meta.evaluate(good.maml(), good.of_one_step(good.maml), progress=torch.ones(2)),
        "progress is tensor.*True or False",
    ),
    "an array in place of a flag, of attacks": (
        lambda: adversarial.evaluate(good.net(), good.data(), epsilon=0.1, progress=torch.ones(2)),
        "progress is tensor.*True or False",
    ),
    "sparse inputs of a network": (
        lambda: propagation.diagnose(good.net(), torch.eye(3).to_sparse()),
        "x is a sparse tensor",
    ),
    "inputs of a network without numbers": (
        lambda: propagation.diagnose(good.net(), torch.ones(4, 3, device="meta")),
        "x is a meta tensor",
    ),
    "weights of a policy that are not finite": (
        lambda: mfoc.linear_policy(lambda x: x, torch.full((2, 2), torch.nan)),
        "weight holds NaN",
    ),
    "sparse data in batches": (
        lambda: mfoc.population(torch.eye(3).to_sparse(), batch_size=2),
        "is a sparse tensor",
    ),
    "a nested loss": (
        lambda: good.clone().adapt(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        "loss is a nested tensor",
    ),
    "what cannot be trained": (lambda: mfoc.optim.CSGD(3, lr=0.1), "params is an int"),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    call, message = FOUND[name]
    with pytest.raises((mfoc.InvalidType, mfoc.InvalidValue), match=message):
        call()

"""Derivatives by autograd: what they are, and that they are zero where nothing depends on an input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfoc.derivatives import gradients, reached, tree_gradients
from tests.oracles.training import central_difference
from tests.problems import D, distance, error, normal


def function(x):
    return (x.sin() * x.roll(1)).sum() + x[0] ** 3


def test_a_gradient_is_a_difference_quotient():
    x = normal(4).requires_grad_()
    assert error(gradients(function(x), [x])[0], central_difference(function, x.detach())) < 1e-8


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_seeds_weigh_the_outputs(outputs, inputs, seed):
    """For linear maps y_k = sum_j A_kj x_j the gradient in x_j is sum_k A_kj' s_k."""
    a = normal(outputs, inputs, 2, 3, seed=seed)
    xs = [normal(3, seed=seed + j).requires_grad_() for j in range(inputs)]
    ys = [sum(a[k, j] @ x for j, x in enumerate(xs)) for k in range(outputs)]
    seeds = [normal(2, seed=seed + 10 + k) for k in range(outputs)]
    found = gradients(ys, xs, seeds)
    for j in range(inputs):
        assert error(found[j], sum(a[k, j].mT @ s for k, s in enumerate(seeds))) < 1e-13


def test_without_seeds_the_outputs_are_summed():
    x = normal(3).requires_grad_()
    assert torch.equal(gradients(x.square(), [x])[0], 2 * x.detach())
    both = gradients([x.square(), 3 * x], [x])[0]
    assert error(both, 2 * x.detach() + 3) < 1e-15


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_input_without_influence_has_a_zero_gradient(create_graph):
    x, unused, constant = normal(2).requires_grad_(), normal(2, 3).requires_grad_(), normal(4)
    found = gradients(x.exp().sum(), [unused, x, constant], create_graph=create_graph)
    assert [g.shape for g in found] == [(2, 3), (2,), (4,)]
    assert not found[0].any()
    assert not found[2].any()
    assert error(found[1], x.exp().detach()) < 1e-15
    assert found[1].requires_grad == create_graph


def test_an_output_without_a_graph_has_zero_gradients():
    x = normal(2).requires_grad_()
    assert not gradients(torch.ones(3, dtype=D), [x])[0].any()
    mixed = gradients([torch.ones(3, dtype=D), 2 * x], [x])[0]
    assert mixed.tolist() == [2, 2]


def test_a_graph_of_the_derivative_gives_the_second_one():
    x = normal(4).requires_grad_()
    slope = gradients(function(x), [x], create_graph=True)[0]
    second = gradients(slope, [x])[0]  # the row sums of the Hessian
    hessian = torch.autograd.functional.hessian(function, x.detach())
    assert error(second, hessian.sum(0)) < 1e-13


def test_a_graph_is_kept_when_asked():
    x = normal(2).requires_grad_()
    y = x.square()
    first = gradients(y, [x], retain_graph=True)
    assert distance(first, gradients(y, [x])) == 0
    with pytest.raises(RuntimeError, match="second time"):
        gradients(y, [x])


def test_trees_come_back_in_their_structure():
    x = {"q": normal(3).requires_grad_(), "token": torch.arange(3)}
    u = [normal(2, seed=1).requires_grad_(), (normal(1, seed=2).requires_grad_(),)]
    dx, du = tree_gradients((x["q"] ** 2).sum() * u[0].sum(), [x, u])
    assert error(dx["q"], (2 * x["q"] * u[0].sum()).detach()) < 1e-14
    assert dx["token"].dtype == torch.int64
    assert not dx["token"].any()
    assert error(du[0], (x["q"] ** 2).sum().expand(2).detach()) < 1e-14
    assert du[1][0].tolist() == [0]


def test_a_path_is_found_whatever_the_slope():
    used, zero, idle, itself = (torch.ones(2, requires_grad=True) for _ in range(4))
    outputs = [(used * 3 + 0 * zero + idle.detach()).sum(), itself, torch.ones(1)]
    assert reached(outputs, [used, zero, idle, itself]) == [True, True, False, True]

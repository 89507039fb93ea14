"""Figures say what they show."""

import math

import pytest
import torch
import torch.nn.functional as F

import mfoc
from mfoc import plot
from tests.problems import mlp, mlp_net, normal, pytrees

pytest.importorskip("matplotlib")


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_certificate_figure():
    data = (normal(20, 3), torch.arange(20) % 2)
    found = mfoc.certify_module(mlp_net(), F.cross_entropy, data, groups=5)
    figure = plot.certificate(found, found, names=["one", "other"])
    shown = texts(figure)
    for word in ("residual", "gap", "curvature", "stage", "95%", "one", "other", "∞"):
        assert word in shown
    assert math.isinf(found.stages[0].gap.value)


def test_curves_figure():
    figure = plot.curves({"a": ([0, 1], [1, 0.1]), "b": ([0, 2], [1, 0.2])}, title="two")
    assert all(word in texts(figure) for word in ("a", "b", "two", "wall time [s]", "objective J"))
    assert figure.axes[0].get_yscale() == "log"


def test_cloud_figure():
    problem, particles = mlp()
    trajectory = mfoc.rollout(problem, problem.controls, particles)
    figure = plot.cloud(trajectory, particles.data)
    assert "class" in texts(figure)
    assert len(figure.axes) == 6
    assert len(plot.cloud(trajectory, stages=[0, 5]).axes) == 2


def test_principal_components_are_those_of_the_covariance():
    x = normal(50, 4) * torch.tensor([3.0, 2.0, 1.0, 0.5])
    scores = plot.principal_components(x)
    top = torch.linalg.eigvalsh(torch.cov(x.mT)).flip(0)[:2]
    assert torch.allclose(scores.var(0), top)
    assert plot.principal_components(normal(5)).shape == (5, 2)


def test_bad_arguments():
    with pytest.raises(mfoc.InvalidType, match="certificates"):
        plot.certificate("x")
    problem, particles = pytrees()
    with pytest.raises(mfoc.InvalidType, match="trajectory"):
        plot.cloud(mfoc.rollout(problem, problem.controls, particles))

"""Pyro is optional: networks need none of it, and importing the paradigm is light."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import variational
from tests.problems import normal, seeded


def test_without_pyro_networks_work_and_the_rest_says_what_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pyro"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyro", None)
    net, adam = seeded(lambda: nn.Sequential(nn.Linear(3, 2))), mfoc.Gradient(partial(torch.optim.Adam, lr=0.01))
    f = variational(net, (normal(20, 3), normal(20, 2, seed=5)), likelihood="gaussian")
    posterior = f.readout(f.solve(adam, steps=1))
    for call in (lambda: posterior.model, lambda: posterior.guide, lambda: variational(lambda y: None, (normal(3),))):
        with pytest.raises(mfoc.MissingExtra, match=r"pip install .pyro-ppl"):
            call()


def test_importing_is_light():
    code = "import sys, paradigms.bayesian; print([n for n in ('pyro', 'matplotlib', 'sklearn') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

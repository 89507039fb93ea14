"""`mfoc diagnose MODULE:FACTORY` imports from the working directory, and its status is the verdict."""

import sys

import pytest

from mfoc.cli import main

NETS = """
import torch
from torch import nn

def stack(gain, depth):
    layers = []
    for _ in range(depth):
        layer = nn.Linear(32, 32)
        nn.init.normal_(layer.weight, std=gain / 32**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(32, 10))

def deep(): return stack(0.3, 20)
def critical(): return stack(1.0, 6)
def double(): return critical().double()
class Net(nn.Sequential):
    def __init__(self): super().__init__(critical(), nn.Linear(10, 3))
def tokens(): return nn.Sequential(nn.Embedding(50, 32), critical())
ready = critical()
def fails(): return nn.Linear(3, 2).weight.reshape(7)
def leaves(): raise SystemExit("bye")
number = 3
def pair(): return torch.randn(16, 32), torch.arange(16) % 10
def loader(): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*pair()), batch_size=8)
def dataset(): return torch.utils.data.TensorDataset(*pair())
def empty(): return torch.utils.data.TensorDataset(torch.ones(0, 32))
"""


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """A module of the user's, in the working directory and nowhere else."""
    (tmp_path / "users_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("users_nets", None)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["deep", "--shape", "32"], 3, "gradients vanish"),
        (["critical", "--shape", "32"], 0, "trains at this depth"),
        (["double", "--shape", "32"], 0, "trains at this depth"),
        (["Net", "--shape", "32"], 0, "trains at this depth"),
        (["ready", "--shape", "32"], 0, "on 64 inputs"),
        (["tokens", "--shape", "12", "--vocabulary", "50"], 0, "on 64 inputs"),
        (["critical", "--data", "users_nets:pair", "--loss", "cross_entropy"], 0, "on 16 inputs; loss 2."),
        (["critical", "--data", "users_nets:loader", "--loss", "cross_entropy"], 0, "on 8 inputs; loss 2."),
        (["critical", "--data", "users_nets:dataset", "--batch", "5"], 0, "on 5 inputs; no loss"),
    ],
)
def test_the_status_is_the_verdict(arguments, status, told, capsys):
    assert main(["diagnose", f"users_nets:{arguments[0]}", *arguments[1:]]) == status
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["users_nets", "--shape", "3"], "expected MODULE:NAME"),
        (["users_nets.py:deep", "--shape", "3"], "as in users_nets:deep"),
        (["./models/users_nets.py:deep", "--shape", "3"], "as in models.users_nets:deep"),
        (["../nets:deep", "--shape", "3"], "as in nets:deep"),
        (["not_there:net", "--shape", "3"], "no module 'not_there'"),
        (["users_nets:absent", "--shape", "3"], "has no 'absent'; it has Net, critical"),
        (["users_nets:number", "--shape", "3"], "expected a torch.nn.Module or an mfoc.Problem"),
        (["users_nets:fails", "--shape", "3"], "mfoc: users_nets:fails failed: RuntimeError: shape '[7]'"),
        (["users_nets:leaves", "--shape", "3"], "users_nets:leaves failed: SystemExit: bye"),
        (["users_nets:critical", "--shape", "3"], "net failed on x, (64, 3)"),
        (["users_nets:critical", "--shape", "3,0"], "expected whole numbers"),
        (["users_nets:critical", "--shape", "many"], "expected whole numbers"),
        (["users_nets:critical", "--shape", "32", "--batch", "0"], "--batch is 0"),
        (["users_nets:critical", "--shape", "32", "--loss", "nothing"], "--loss is 'nothing'"),
        (["users_nets:critical", "--data", "users_nets:empty"], "at least one"),
        (["users_nets:critical", "--data", "users_nets:fails"], "users_nets:fails failed"),
    ],
)
def test_what_goes_wrong_is_one_line(arguments, told, capsys):
    assert main(["diagnose", *arguments]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert told in line
    assert printed.out == ""


def test_the_same_seed_is_the_same_network(capsys):
    told = []
    for seed in ("0", "0", "1"):
        main(["diagnose", "users_nets:critical", "--shape", "32", "--seed", seed])
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] != told[2]


def test_a_module_that_does_not_import_is_the_users(capsys, tmp_path):
    (tmp_path / "users_broken.py").write_text("import not_there_either\n")
    assert main(["diagnose", "users_broken:net", "--shape", "3"]) == 1
    assert "importing users_broken failed: ModuleNotFoundError: No module named 'not_there" in capsys.readouterr().err
    assert main(["diagnose", "users_broken:net", "--shape", "3", "--traceback"]) == 1
    assert 'users_broken.py", line 1' in capsys.readouterr().err


def test_it_is_drawn_where_it_is_asked_for(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["diagnose", "users_nets:critical", "--shape", "32", "--plot", "new/figure.png"]) == 0
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")

"""Bad input through the public door: an mfoc error that names the culprit, never a surprise."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import mfoc
from mfoc.games.maximisers import PGD, YOPO, Free
from mfoc.minimisers import LBFGS, Descent

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
X = torch.ones(4, 2)
NAN = X.clone()
NAN[2, 1] = torch.nan


def problem(**changes):
    parts = {
        "dynamics": lambda t, x, u, z: x + u,
        "terminal_cost": lambda x, z: x.square().sum(1),
        "controls": [torch.ones(2), torch.ones(2)],
    }
    return mfoc.Problem(**(parts | changes))


def solve(x=X, solver=SGD, steps=1, p=None, **options):
    return mfoc.solve(p or problem(), solver, x, steps=steps, **options)


def continuous(**changes):
    parts = {
        "drift": lambda t, x, u, z: x + u,
        "terminal_cost": lambda x, z: x.square().sum(1),
        "controls": [torch.ones(2), torch.ones(2)],
    }
    return mfoc.continuous(**(parts | changes))


def net(*layers, loss=F.mse_loss, **options):
    return mfoc.from_module(nn.Sequential(*(layers or (nn.Linear(2, 2),))), loss, **options)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.second(self.first(x))


class Ragged(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.ones(i + 1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([X])


class Triples(Ragged):
    def __getitem__(self, i):
        return torch.ones(2), torch.ones(2), torch.ones(2)


def shared():
    linear = nn.Linear(2, 2)
    return net(linear, linear)


def game(state=None, eta=None, **options):
    made = mfoc.Game.of(problem(), mfoc.Ball(0.1), **options)
    return made if state is None else made.enter(state, X if eta is None else eta)


def duel(inner=None, outer=SGD, seed=0):
    return mfoc.Minimax(inner or PGD(1), outer, seed)


def hooked(register, net=None, **options):
    net = nn.Sequential(nn.Linear(2, 2)) if net is None else net
    getattr(net, register)(lambda *args: None)
    return mfoc.from_module(net, F.mse_loss, **options)


def states_of(solver):
    return mfoc.Iterate(0, problem().controls, solver.init(problem(), problem().controls))


BAD = {
    # the problem
    "dynamics not callable": (lambda: problem(dynamics=3), "dynamics is an int"),
    "terminal cost not callable": (lambda: problem(terminal_cost=X), "terminal_cost is a Tensor"),
    "running cost not callable": (lambda: problem(running_cost=1.0), "running_cost is a float"),
    "schedule not callable": (lambda: problem(schedule="tied"), "schedule is a str"),
    "kind not callable": (lambda: problem(kind=1), "kind is an int"),
    "no stage": (lambda: problem(controls=[]), "controls is empty"),
    "no tensor in controls": (lambda: problem(controls=[{}, {}]), "controls holds no tensor"),
    "controls are a tensor": (lambda: problem(controls=torch.ones(3, 2)), "controls is a Tensor.*tied"),
    "a number among controls": (lambda: problem(controls=[torch.ones(2), 1.0]), r"controls\[1\] is a float"),
    "None among controls": (lambda: problem(controls=[torch.ones(2), None]), r"controls\[1\] is a NoneType"),
    "an array among controls": (lambda: problem(controls=[{"w": np.ones(2)}]), r"controls\[0\]\['w'\] is an ndarray"),
    "controls and horizon disagree": (lambda: problem(horizon=3), "controls has 2 stages and horizon is 3"),
    "zero horizon": (lambda: problem(horizon=0), "horizon is 0"),
    "boolean horizon": (lambda: problem(horizon=True), "horizon is True"),
    "tied without horizon": (lambda: problem(schedule=mfoc.tied), "horizon is missing"),
    "non-finite controls": (
        lambda: problem(controls=[torch.ones(2), {"b": NAN[2]}]),
        r"controls\[1\]\['b'\] holds NaN",
    ),
    "infinite controls": (
        lambda: problem(controls=[torch.tensor([torch.inf, -torch.inf])]),
        r"controls\[0\] holds NaN",
    ),
    "integer controls": (lambda: problem(controls=[torch.ones(2, dtype=torch.int64)]), r"controls\[0\] has dtype"),
    "complex controls": (lambda: problem(controls=[torch.ones(2, dtype=torch.complex64)]), r"controls\[0\] has dtype"),
    "mixed dtypes": (
        lambda: problem(controls=[torch.ones(2), torch.ones(2).double()]),
        r"controls\[1\] is torch.float64",
    ),
    "mixed devices": (lambda: problem(controls=[torch.ones(2), torch.ones(2, device="meta")]), r"controls\[1\].*meta"),
    # the particles
    "no particles": (lambda: mfoc.Particles(torch.ones(0, 2)), "state is empty"),
    "scalar state": (lambda: mfoc.Particles(torch.ones(())), "state is a scalar"),
    "array state": (lambda: mfoc.Particles(np.ones(3)), "state is an ndarray"),
    "empty tree": (lambda: mfoc.Particles({}), "state has no tensor"),
    "ragged state": (lambda: mfoc.Particles({"a": X, "b": X[:3]}), r"state\['b'\] holds 3 particles"),
    "ragged data": (lambda: mfoc.Particles(X, X[:3]), "data holds 3 particles"),
    "number in data": (lambda: mfoc.Particles(X, {"y": 1}), r"data\['y'\] is an int"),
    "particles to validate": (lambda: problem().validate(X), "particles is a Tensor"),
    "words to roll out": (lambda: mfoc.rollout(problem(), problem().controls, "cloud"), "source is a str"),
    "triple to evaluate": (lambda: mfoc.evaluate(problem(), problem().controls, (X, X, X)), "expected a pair"),
    "too few controls": (lambda: mfoc.rollout(problem(), [X[0]], mfoc.Particles(X)), "controls has 1 stages"),
    "too many controls": (lambda: mfoc.evaluate(problem(), [X[0]] * 3, mfoc.Particles(X)), "controls has 3 stages"),
    # what does not fit together
    "wrong shape": (lambda: solve(torch.ones(4, 3)), r"stage 0: dynamics \(state \(4, 3\)"),
    "wrong shape later": (
        lambda: solve(p=problem(controls=[torch.ones(2), torch.ones(3)])),
        r"stage 1: dynamics .*control \(3,\)",
    ),
    "float64 particles": (lambda: solve(X.double()), "state is torch.float64 and .*float32"),
    "particles elsewhere": (lambda: solve(mfoc.Particles(X.to("meta"))), "state is a meta tensor"),
    "lost particles": (
        lambda: solve(p=problem(dynamics=lambda t, x, u, z: x[:2])),
        r"stage 0: dynamics .*\(2, 2\); expected 4 particles",
    ),
    "state mean": (lambda: solve(p=problem(dynamics=lambda t, x, u, z: x.mean())), "stage 0: dynamics .*expected 4"),
    "state is None": (lambda: solve(p=problem(dynamics=lambda t, x, u, z: None)), "stage 0: dynamics .*NoneType"),
    "state is empty": (lambda: solve(p=problem(dynamics=lambda t, x, u, z: {})), "stage 0: dynamics .*empty state"),
    "scalar terminal cost": (
        lambda: solve(p=problem(terminal_cost=lambda x, z: x.mean())),
        r"terminal_cost returned shape \(\).*reduction",
    ),
    "cost per entry": (
        lambda: solve(p=problem(terminal_cost=lambda x, z: x)),
        r"terminal_cost returned shape \(4, 2\)",
    ),
    "scalar running cost": (
        lambda: solve(p=problem(running_cost=lambda t, x, u, z: u.sum())),
        r"stage 0: running_cost returned shape \(\)",
    ),
    "number as running cost": (
        lambda: solve(p=problem(running_cost=lambda t, x, u, z: 0.0)),
        "stage 0: running_cost returned a float",
    ),
    "integer cost": (
        lambda: solve(p=problem(terminal_cost=lambda x, z: x.argmax(1))),
        "terminal_cost returned a torch.int64",
    ),
    "missing data": (lambda: solve(p=problem(terminal_cost=lambda x, z: z["y"])), "terminal_cost .*failed"),
    **{
        f"missing data in {where}": (
            lambda change=change: solve(p=problem(**change)),
            f"{where}.*z is None; pass a pair",
        )
        for where, change in {
            "terminal_cost": {"terminal_cost": lambda x, z: x.sum(1) - z},
            "running_cost": {"running_cost": lambda t, x, u, z: z["rate"] * x.sum(1)},
            "dynamics": {"dynamics": lambda t, x, u, z: x + u * z},
        }.items()
    },
    "missing labels": (lambda: solve(p=net(loss=F.cross_entropy)), "terminal_cost.*z is None; pass a pair"),
    **{
        f"{dtype} state of a network": (
            lambda dtype=dtype: solve((X.to(dtype), X), p=net()),
            f"stage 0: dynamics.*the state is {dtype}; expected floating",
        )
        for dtype in (torch.int64, torch.bool)
    },
    "integer state of a cost": (
        lambda: solve(X.long(), p=problem(dynamics=lambda t, x, u, z: x)),
        "terminal_cost returned a torch.int64.*the state is torch.int64; expected floating",
    ),
    "class indices for numbers": (
        lambda: solve((X, torch.tensor([0, 1, 0, 1])), p=net(loss=nn.PoissonNLLLoss())),
        "class indices.*one_hot",
    ),
    "labels in a column": (lambda: solve((X, X[:, :1].long()), p=net(loss=F.cross_entropy)), r"z\.squeeze\(1\)"),
    "labels from one": (
        lambda: solve((X, torch.tensor([1, 2, 1, 2])), p=net(loss=F.cross_entropy)),
        r"2 classes and labels lie in 1\.\.2",
    ),
    # functions of other arguments
    **{
        f"{name} of other arguments, {k}": (lambda name=name, f=f: problem(**{name: f}), rf"{name} takes \(.*called")
        for name, functions in {
            "dynamics": (lambda x, t, u, z: x, lambda t, u, x, z: x, lambda t, x, z, u: x, lambda x, u: x + u),
            "running_cost": (lambda x, u, t, z: x, lambda t, x, u: x, lambda state, time, control, data: state),
            "terminal_cost": (lambda z, x: x, lambda x: x, lambda x, z, w: x, lambda data, state: state),
            "schedule": (lambda t, controls: controls, lambda t, u: u, lambda controls: controls),
            "kind": (lambda: "layer",),
            "affine": (lambda t, x: True,),
        }.items()
        for k, f in enumerate(functions)
    },
    "a keyword that nobody gives": (
        lambda: problem(dynamics=lambda t, x, u, z, *, step: x),
        "required argument: 'step'",
    ),
    "swapped drift": (lambda: continuous(drift=lambda x, t, u, z: x + u), r"drift takes \(x, t, u, z\)"),
    "drift of two": (lambda: continuous(drift=lambda x, u: x + u), r"drift takes \(x, u\)"),
    "swapped rate": (lambda: continuous(running_cost=lambda x, u, t, z: x), "running_cost takes"),
    "swapped diffusion": (lambda: mfoc.euler_maruyama(lambda x, t, u, z: x), "diffusion takes"),
    "diffusion by name": (lambda: mfoc.euler_maruyama("1"), "diffusion is '1'"),
    "swapped loss": (lambda: net(loss=lambda y_true, y_pred: y_pred), r"loss takes \(y_true, y_pred\)"),
    "loss of one": (lambda: net(loss=lambda output: output), r"loss takes \(output\)"),
    "hook of nothing": (lambda: solve(hooks=[print, lambda: True]), r"hooks\[1\] takes \(\)"),
    "hook of two": (lambda: solve(hooks=[lambda step, iterate: True]), r"hooks\[0\] takes \(step, iterate\)"),
    "rate of no step": (lambda: mfoc.Gradient(torch.optim.SGD, lr_schedule=lambda: 1.0), r"lr_schedule takes \(\)"),
    "population of no step": (lambda: mfoc.population(lambda: mfoc.Particles(X)), r"population takes \(\)"),
    "ramp of no step": (lambda: mfoc.Minimax(PGD(1), SGD, ramp=lambda: 1.0), r"ramp takes \(\)"),
    # controls that do nothing
    "controls that nothing uses": (lambda: solve(p=problem(dynamics=lambda t, x, u, z: x)), "do not reach the costs"),
    "detached controls": (lambda: solve(p=problem(dynamics=lambda t, x, u, z: x + u.detach())), "do not reach"),
    "controls as numbers": (lambda: solve(p=problem(dynamics=lambda t, x, u, z: x + u[0].item())), "do not reach"),
    "tied controls that nothing uses": (
        lambda: solve(p=problem(controls={"w": X[0]}, schedule=mfoc.tied, horizon=2, dynamics=lambda t, x, u, z: x)),
        "do not reach",
    ),
    "a module as controls": (lambda: problem(controls=nn.Linear(2, 2)), r"controls is a Linear.*from_module"),
    "parameters as they come": (lambda: problem(controls=nn.Linear(2, 2).parameters()), r"generator.*list\(controls\)"),
    "too few arguments": (
        lambda: solve(p=problem(dynamics=lambda t, x, u: x)),
        r"dynamics takes \(t, x, u\); it is called",
    ),
    "schedule fails": (
        lambda: solve(p=problem(controls={"a": X}, horizon=2, schedule=lambda u, t: u["b"])),
        "stage 0: the schedule failed",
    ),
    "in-place dynamics": (
        lambda: solve(X.clone(), p=problem(dynamics=lambda t, x, u, z: x.mul_(2))),
        "dynamics.*in-place",
    ),
    "in-place running cost": (
        lambda: solve(X.clone(), p=problem(running_cost=lambda t, x, u, z: x.mul_(2).sum(1))),
        "running_cost writes",
    ),
    "in-place terminal cost": (
        lambda: solve(X.clone(), p=problem(terminal_cost=lambda x, z: x.mul_(2).sum(1))),
        "terminal_cost writes",
    ),
    "in-place schedule": (
        lambda: solve(p=problem(controls=X[0].clone(), horizon=2, schedule=lambda u, t: u.mul_(2))),
        "stage 0: the schedule writes",
    ),
    "random terminal cost": (
        lambda: solve(p=problem(terminal_cost=lambda x, z: x.sum(1) * torch.rand(()))),
        "terminal_cost draws random numbers",
    ),
    "random dynamics": (
        lambda: solve(p=problem(dynamics=lambda t, x, u, z: x + u * torch.rand(2))),
        "dynamics .*random numbers",
    ),
    # continuous time
    "zero T": (lambda: continuous(T=0), "T is 0"),
    "infinite T": (lambda: continuous(T=float("inf")), "T is inf"),
    "T is a string": (lambda: continuous(T="1"), "T is '1'"),
    "drift not callable": (lambda: continuous(drift=1), "drift is an int"),
    "unknown scheme": (lambda: continuous(scheme="rk4"), "scheme is 'rk4'"),
    "scheme class": (lambda: continuous(scheme=mfoc.euler_maruyama), "scheme is <class"),
    "horizon is a string": (lambda: continuous(horizon="3"), "horizon is '3'"),
    "tied tuple": (lambda: continuous(controls=(torch.ones(2),), schedule=mfoc.tied), "horizon is missing"),
    "no noise": (lambda: solve(p=continuous(scheme=mfoc.euler_maruyama(1.0))), "no noise.*noise="),
    "short noise": (
        lambda: solve((X, {"noise": torch.ones(4, 1, 2)}), p=continuous(scheme=mfoc.euler_maruyama(1.0))),
        "stage 1: dynamics",
    ),
    "noise of another shape": (
        lambda: solve((X, {"noise": torch.ones(4, 2, 3)}), p=continuous(scheme=mfoc.euler_maruyama(1.0))),
        r"noise term has shape \(4, 3\)",
    ),
    "broadcast drift": (
        lambda: solve(X[:, 0], p=continuous(drift=lambda t, x, u, z: x[:, None] * u[0])),
        r"drift has shape \(4, 1\)",
    ),
    "drift of other keys": (
        lambda: solve(
            mfoc.Particles({"q": X}),
            p=continuous(drift=lambda t, x, u, z: {"v": x["q"]}, terminal_cost=lambda x, z: x["q"].sum(1)),
        ),
        r"keys \['q'\] and the other \['v'\]",
    ),
    # networks
    "no module": (lambda: mfoc.from_module(F.relu, F.mse_loss), "net is a"),
    "a module class": (lambda: mfoc.from_module(nn.Linear, F.mse_loss), "net is the class Linear"),
    "loss by name": (lambda: net(loss="mse"), "loss is a str"),
    "loss class": (lambda: net(loss=nn.MSELoss), "loss is the class MSELoss"),
    "hook on a network that is cut": (lambda: hooked("register_forward_hook", Two(), stages=["first"]), "of its own"),
    "hook on a network in groups": (lambda: hooked("register_forward_hook", stages=["0"]), "of its own"),
    "string stages": (lambda: mfoc.from_module(Two(), F.mse_loss, stages="first"), "stages is 'first'"),
    "unknown stage": (lambda: mfoc.from_module(Two(), F.mse_loss, stages=["first", "third"]), "'third'.*'second'"),
    "disordered stages": (lambda: mfoc.from_module(Two(), F.mse_loss, stages=["second", "first"]), "run as"),
    "stage twice": (lambda: mfoc.from_module(Two(), F.mse_loss, stages=["first", "first"]), "distinct"),
    "empty stages": (lambda: mfoc.from_module(Two(), F.mse_loss, stages=[]), r"stages is \[\]"),
    "number as stage": (lambda: mfoc.from_module(Two(), F.mse_loss, stages=[0]), "stages holds 0"),
    "unknown child": (lambda: net(nn.Linear(2, 2), nn.Tanh(), stages=["0", "2"]), "'2'"),
    "missing child": (lambda: net(nn.Linear(2, 2), nn.Tanh(), stages=["0"]), "stages must name every child"),
    "child as number": (lambda: net(stages=[0]), "stages holds 0"),
    "empty network": (lambda: mfoc.from_module(nn.Sequential(), F.mse_loss), "empty nn.Sequential"),
    "nothing to train": (lambda: net(nn.Tanh()), "nothing to train"),
    "frozen network": (lambda: net(nn.Linear(2, 2).requires_grad_(False)), "nothing to train"),
    "lazy": (lambda: net(nn.Linear(2, 2), nn.LazyLinear(2)), r"'1\.weight' is lazy"),
    "dropout": (lambda: net(nn.Linear(2, 2), nn.Dropout(0.5)), r"'1' \(Dropout\) is random"),
    "recurrent dropout": (lambda: net(nn.LSTM(2, 2, 2, dropout=0.5)), r"'0' \(LSTM\) is random"),
    "shared weights": (shared, r"'0\.weight' is used in stages '0' and '1'.*tied=True"),
    "wrong input": (lambda: solve(torch.ones(4, 3), p=net()), "stage 0: dynamics"),
    "double input": (lambda: solve((X.double(), X), p=net()), "state is torch.float64"),
    "class out of range": (
        lambda: solve((X, torch.full((4,), 7)), p=net(loss=F.cross_entropy)),
        "terminal_cost .*failed",
    ),
    "negative weight decay": (lambda: mfoc.weight_decay(-1.0), "coefficient is -1.0"),
    "weight decay by name": (lambda: mfoc.weight_decay("1e-4"), "coefficient is '1e-4'"),
    "nan weight decay": (lambda: mfoc.weight_decay(float("nan")), "coefficient is nan"),
    "dropout of one": (lambda: mfoc.networks.MaskedDropout(1.0, "m"), "p is 1.0"),
    "dropout by name": (lambda: mfoc.networks.MaskedDropout("m", 0.5), "p is 'm'"),
    # the population
    "unknown source": (lambda: mfoc.population(3), "source is an int"),
    "source is None": (lambda: solve(None), "source is a NoneType"),
    "source is a dict": (lambda: mfoc.population({"x": X}), "source is a dict"),
    "three parts": (lambda: mfoc.population((X, X, X)), "source is a tuple of 3"),
    "lists of numbers": (lambda: mfoc.population(([1.0], [2.0])), "state holds a float"),
    "ragged array": (lambda: mfoc.population(np.array([[1], [1, 2]], dtype=object)), "state is a ragged"),
    "array of words": (lambda: mfoc.population(np.array(["a", "b"])), "state is an array of <U1"),
    "ragged dataset": (lambda: mfoc.population(Ragged())(0), "do not collate"),
    "dataset of triples": (lambda: mfoc.population(Triples())(0), "tuple of 3"),
    "tensor dataset of three": (lambda: mfoc.population(TensorDataset(X, X, X)), "TensorDataset holds 3"),
    "list of numbers": (lambda: mfoc.population([1.0, 2.0, 3.0]), "list of 3; .*torch.tensor"),
    "list of samples": (lambda: mfoc.population([(X[0], X[1])] * 3), "list of 3; .*torch.stack"),
    "empty source": (lambda: mfoc.population(X[:0]), "state is empty"),
    "empty dataset": (lambda: mfoc.population(TensorDataset(X[:0])), "empty"),
    "unequal pair": (lambda: mfoc.population((X, X[:3])), "data holds 3"),
    "nan in the source": (lambda: mfoc.population(NAN), "state holds NaN.*particle 2"),
    "stream": (lambda: mfoc.population(DataLoader(Stream())), "iterable dataset"),
    "own sampler": (
        lambda: mfoc.population(DataLoader(X, sampler=torch.utils.data.SubsetRandomSampler([0, 1]))),
        "sampler of its own",
    ),
    "zero batch size": (lambda: mfoc.population(X, batch_size=0), "batch_size is 0"),
    "float batch size": (lambda: mfoc.population(X, batch_size=2.0), "batch_size is 2.0"),
    "boolean batch size": (lambda: mfoc.population(X, batch_size=True), "batch_size is True"),
    "negative seed": (lambda: mfoc.population(X, seed=-1), "seed is -1"),
    "float seed": (lambda: mfoc.population(X, seed=0.5), "seed is 0.5"),
    "batch size and loader": (
        lambda: mfoc.population(DataLoader(X), batch_size=2),
        "batch_size was given with a DataLoader",
    ),
    "batch size and function": (
        lambda: mfoc.population(lambda n: X, batch_size=2),
        "batch_size was given with a function",
    ),
    "function of tensors": (lambda: solve(lambda n: X), "function returned a Tensor"),
    # solving
    "negative steps": (lambda: solve(steps=-1), "steps is -1"),
    "float steps": (lambda: solve(steps=1.5), "steps is 1.5"),
    "negative tol": (lambda: solve(tol=-1e-3), "tol is -0.001"),
    "tol by name": (lambda: solve(tol="small"), "tol is 'small'"),
    "nan tol": (lambda: solve(tol=float("nan")), "tol is nan"),
    "hook not in a list": (lambda: solve(hooks=print), "hooks must be a list"),
    "hook not callable": (lambda: solve(hooks=[1]), "hooks must be a list"),
    "hooks are a number": (lambda: solve(hooks=1), "hooks must be a list"),
    "hooks are a generator": (lambda: solve(hooks=(hook for hook in [print])), "hooks must be a list"),
    "no problem": (lambda: mfoc.solve(net, SGD, X, steps=1), "problem is a function"),
    "solver class": (lambda: solve(solver=mfoc.MSA), "class MSA; make an instance"),
    "optimizer as solver": (lambda: solve(solver=torch.optim.SGD([X.clone()])), "solver is an SGD"),
    "start is controls": (lambda: solve(start=problem().controls), "start is a list"),
    "start of another problem": (lambda: solve(start=mfoc.Iterate(0, [torch.ones(2)], {})), "start holds controls"),
    "start of other shapes": (
        lambda: solve(start=mfoc.Iterate(0, [torch.ones(3)] * 2, SGD.init(problem(), [torch.ones(3)] * 2))),
        "stage 0: dynamics",
    ),
    "start with NaN": (
        lambda: solve(start=mfoc.Iterate(0, [torch.ones(2), NAN[2]], SGD.init(problem(), problem().controls))),
        r"controls\[1\] holds NaN",
    ),
    "start of another solver": (lambda: solve(start=states_of(mfoc.EMSA())), "start holds the state of another solver"),
    "start of another optimizer": (
        lambda: solve(start=states_of(mfoc.Gradient(torch.optim.Adam))),
        "another optimizer: SGD has no",
    ),
    "iterate without solver": (lambda: next(mfoc.iterate(problem(), None, X)), "solver is a NoneType"),
    # the solvers
    "optimizer instance": (lambda: mfoc.Gradient(torch.optim.SGD([X.clone()])), "optimizer is an SGD"),
    "optimizer by name": (lambda: mfoc.Gradient("sgd"), "optimizer is the string 'sgd'.*partial"),
    "optimizer that is none": (
        lambda: solve(solver=mfoc.Gradient(lambda p: None)),
        r"optimizer\(...\) returned a NoneType",
    ),
    "negative rho": (lambda: mfoc.EMSA(-1.0), "rho is -1.0"),
    "infinite rho": (lambda: mfoc.EMSA(float("inf")), "rho is inf"),
    "rho by name": (lambda: mfoc.EMSA("1"), "rho is '1'"),
    "negative costate rho": (lambda: mfoc.EMSA(1.0, -1.0), "costate_rho is -1.0"),
    "no tries": (lambda: mfoc.EMSA(tries=0), "tries is 0"),
    "adaptive without a proximal term": (lambda: mfoc.EMSA(proximal=0.0), "proximal is 0"),
    "negative proximal weight": (lambda: mfoc.EMSA(proximal=-1.0), "proximal is -1.0"),
    "no decrease": (lambda: mfoc.EMSA(eta=0), "eta is 0"),
    "more decrease than there is": (lambda: mfoc.EMSA(eta=0.5), "eta is 0.5"),
    "adaptive descent": (lambda: mfoc.EMSA(inner=Descent(0.1)), "inner is Descent"),
    "inner class": (lambda: mfoc.MSA(LBFGS), "inner is the class LBFGS; make an instance"),
    "inner by name": (lambda: mfoc.EMSA(inner="lbfgs"), "inner is a str"),
    "zero lr": (lambda: Descent(0.0), "lr is 0.0"),
    "lr by name": (lambda: Descent("0.1"), "lr is '0.1'"),
    "no inner steps": (lambda: Descent(0.1, steps=0), "steps is 0"),
    "float inner steps": (lambda: LBFGS(steps=2.5), "steps is 2.5"),
    "no history": (lambda: LBFGS(history=0), "history is 0"),
    "no trials": (lambda: LBFGS(trials=0), "trials is 0"),
    "negative inner tol": (lambda: LBFGS(tol=-1.0), "tol is -1.0"),
    "inner tol by name": (lambda: LBFGS(tol="0"), "tol is '0'"),
    "schedule of rates": (lambda: mfoc.Gradient(torch.optim.Adam, lr_schedule=0.9), "schedule is a float"),
    **{
        f"settings beside the optimizer, {name}": (make, r"functools\.partial\(torch\.optim\.(Adam, lr=0\.1|SGD, )")
        for name, make in {
            "by name": lambda: mfoc.Gradient(torch.optim.Adam, lr=0.1),
            "by place": lambda: mfoc.Gradient(torch.optim.Adam, 0.1),
            "made": lambda: mfoc.Gradient(torch.optim.Adam([X.clone()])),
            "none": lambda: mfoc.Gradient(),
            "a net": lambda: mfoc.Gradient(nn.Linear(2, 2)),
            "another class": lambda: mfoc.Gradient(torch.optim.lr_scheduler.StepLR),
            "unknown": lambda: solve(solver=mfoc.Gradient(partial(torch.optim.SGD, rate=0.1))),
            "negative": lambda: solve(solver=mfoc.Gradient(partial(torch.optim.SGD, lr=-0.1))),
        }.items()
    },
    "optimizer of nothing": (lambda: mfoc.Gradient(lambda: torch.optim.SGD([X])), r"optimizer takes \(\)"),
    "optimizer of other tensors": (
        lambda: solve(solver=mfoc.Gradient(lambda p: torch.optim.SGD(nn.Linear(2, 2).parameters()))),
        "holds tensors of its own",
    ),
    # games
    **{f"epsilon {e}": (lambda e=e: mfoc.Ball(e), f"epsilon is {e}") for e in (0, -1, float("nan"), float("inf"))},
    **{f"epsilon {e!r}": (lambda e=e: mfoc.Ball(e), f"epsilon is {e!r}") for e in (True, "a", None)},
    **{f"bounds {b}": (lambda b=b: mfoc.Ball(1, bounds=b), "bounds is") for b in (3, (1, 0), (0, 1, 2))},
    "unknown norm": (lambda: mfoc.Ball(1, "l1"), "norm is 'l1'.*'linf'"),
    "game of nothing": (lambda: mfoc.Game.of(None, mfoc.Ball(1)), "problem is a NoneType"),
    "radius as ball": (lambda: mfoc.Game.of(problem(), 0.1), "ball is a float"),
    **{f"stage {s} of a game": (lambda s=s: game(stage=s), f"stage is {s}; .* 0 to 1$") for s in (-1, 2, True, 1.0)},
    **{f"part {p!r} of a tuple": (lambda p=p: game((X, X), part=p), f"part is {p!r}") for p in (2, "q")},
    "part that is missing": (lambda: game((X, X)), "is a tuple.*part="),
    "disturbance of another shape": (lambda: game(X, X[:, :1]), r"shape \(4, 1\).*\(4, 2\)"),
    "integer state in a game": (lambda: game(X.long()), "torch.int64 tensor"),
    **{f"PGD({k})": (lambda k=k: PGD(k), f"steps is {k}") for k in (0, -1, 2.0, True)},
    **{f"step size {a}": (lambda a=a: PGD(3, a), f"step_size is {a}") for a in (-1, 0, True, float("nan"))},
    "random start by number": (lambda: PGD(3, random_start=1), "random_start is 1"),
    "step size of YOPO": (lambda: YOPO(1, 1, "small"), "step_size is 'small'"),
    "no passes": (lambda: YOPO(0, 1), "m is 0"),
    "no steps a pass": (lambda: YOPO(1, 0), "n is 0"),
    "no replays": (lambda: Free(0), "replays is 0"),
    "adversary class": (lambda: duel(PGD), "inner is the class PGD"),
    "adversary by name": (lambda: duel("pgd"), "inner is a str"),
    "minimiser by name": (lambda: duel(outer="sgd"), "outer is a str"),
    **{f"seed {s} of a game": (lambda s=s: duel(seed=s), f"seed is {s}") for s in (-1, True, 0.5)},
    "game in a game": (lambda: duel(outer=duel()), "outer is a Minimax"),
    "game without its adversary": (lambda: solve(p=game()), "nothing here plays its adversary.*Minimax"),
    "game without its adversary, by steps": (lambda: mfoc.iterate(game(), SGD, X), "nothing here plays"),
    "certificate without the adversary": (lambda: mfoc.certify(game(), game().controls, X), "nothing here plays"),
    "nominal with an adversary": (lambda: solve(p=game(), solver=duel(), nominal=True), "nominal is True.*Minimax"),
    "nominal by word": (lambda: solve(p=game(), nominal="yes"), "nominal is 'yes'"),
    "no adversary": (lambda: solve(solver=duel()), "Problem without an adversary.*Game.of"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    act, words = BAD[name]
    with pytest.raises(mfoc.MfocError, match=words) as caught:
        act()
    assert isinstance(caught.value, ValueError | TypeError)
    assert len(str(caught.value)) > 25  # what, why, and how to mend it


ACCEPTED = {
    "names of one's own": lambda: problem(dynamics=lambda k, state, theta, labels: state + theta),
    "a latent state called z": lambda: problem(dynamics=lambda t, z, u, data: z + u),
    "names that say unused": lambda: problem(dynamics=lambda _t, x, u, _: x + u),
    "any arguments": lambda: problem(dynamics=lambda *args: args[1] + args[2]),
    "a default more": lambda: problem(dynamics=lambda t, x, u, z, step=0.1: x + step * u),
    "a method": lambda: problem(dynamics=Drifting().move),
    "a part of a function": lambda: problem(dynamics=partial(lambda step, t, x, u, z: x + step * u, 0.1)),
    "a torch loss as a cost": lambda: problem(terminal_cost=F.mse_loss),
    "a function without a signature": lambda: problem(terminal_cost=max),
    "a module as a cost": lambda: problem(terminal_cost=nn.MSELoss()),
    "a state-dict hook": lambda: hooked("register_state_dict_pre_hook"),
    "a hook wrapped in a stage": lambda: net(nn.Sequential(nn.Linear(2, 2))),
    "a zero slope": lambda: solve(p=problem(dynamics=lambda t, x, u, z: x + 0 * u)),
    "tokens": lambda: solve((X.long(), X), p=net(nn.Embedding(2, 3), nn.Flatten(), nn.Linear(6, 2))),
    "a control for each particle": lambda: solve(torch.ones(9, 2), p=problem(controls=[torch.ones(9, 2)] * 2)),
    "a game, nominally": lambda: solve(p=game(), nominal=True),
    "a problem, nominally": lambda: solve(nominal=True),
    "a game that is played": lambda: solve(game().disturb(mfoc.Particles(X), 0.1 * X), p=game()),
    "its certificate": lambda: mfoc.certify(game(), game().controls, game().disturb(mfoc.Particles(X), 0.1 * X)),
}


class Drifting:
    def move(self, t, x, u, z):
        return x + u


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_only_looks_like_a_mistake_is_accepted(name):
    ACCEPTED[name]()


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(mfoc.InvalidValue, match="inference_mode"):
        solve()

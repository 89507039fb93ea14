"""A game on two processes is the game on one: random starts, carried disturbances, and the weights of the targets."""

from __future__ import annotations

import os
import socket
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

import mfoc
from mfoc import distributed
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from tests.architectures import mlp_net
from tests.problems import D, distance, normal, same_bits

X, Y = normal(13, 3).clamp(-0.8, 0.8), torch.tensor([0, 1, -100] * 4 + [1])
ADAM = partial(torch.optim.Adam, lr=0.02)
RUNS = {
    "fgsm": mfoc.Minimax(FGSM(0.4, random_start=True), ADAM, seed=1),
    "pgd": mfoc.Minimax(PGD(3), ADAM, seed=2),
    "yopo": mfoc.Minimax(YOPO(2, 2), ADAM, seed=3),
    "free": mfoc.Minimax(Free(2, 0.1), ADAM, seed=4),
    "emsa": mfoc.Minimax(YOPO(2, 2), mfoc.EMSA(1.0), seed=5),
    "plain": mfoc.Gradient(ADAM),
}
NORMS = ("linf", "l2")
ORDERS = {"whole": {}, "shuffled": {"batch_size": 5, "seed": 3}, "in order": {"batch_size": 5, "shuffle": False}}


def everything():
    torch.set_num_threads(1)
    loss, found = partial(F.cross_entropy, weight=torch.tensor([0.3, 2.0], dtype=D)), {}
    for norm in NORMS:
        game = mfoc.Game.of(mfoc.from_module(mlp_net(), loss), mfoc.Ball(0.4, norm, (-0.8, 0.8)))
        for name, solver in RUNS.items():
            for order, options in ORDERS.items():
                source, nominal = mfoc.population((X, Y), **options), name == "plain"
                solution = mfoc.solve(game, solver, source, steps=5, nominal=nominal)
                kept = solution.last.state.get("disturbance") if name == "free" else None
                found[f"{norm} {name} {order}"] = (solution.controls, solution.value, kept)
    return found


def work(rank, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = [torch.arange(3.0)[:, None], torch.arange(3.0, 5.0)[:, None]][rank]
    uneven = [torch.arange(1.0), torch.arange(1.0, 4.0)][rank]
    torch.save([everything(), distributed.gathered(rows), distributed.gathered(uneven)], f"{path}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(path)), nprocs=2)
    return [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return everything()


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("norm", NORMS)
def test_two_processes_play_as_one(norm, run, order, ranks, alone):
    expected = alone[f"{norm} {run} {order}"]
    first, second = (rank[0][f"{norm} {run} {order}"] for rank in ranks)
    assert same_bits([first[0], first[2]], [second[0], second[2]])  # what a checkpoint holds is the same on all ranks
    assert distance(first[0], expected[0]) < 1e-8
    assert first[1] == pytest.approx(expected[1], rel=1e-8)
    assert distance(expected[0], [dict(layer.named_parameters()) for layer in mlp_net()]) > 1e-2
    if expected[2] is not None:
        assert distance(first[2], expected[2]) < 1e-8


@pytest.mark.slow
def test_rows_are_gathered_in_the_order_they_are_shared(ranks):
    for _, rows, uneven in ranks:
        assert rows[:, 0].tolist() == [0, 3, 1, 4, 2]
        assert uneven.tolist() == [0, 1, 0, 2, 0, 3]  # zeros where a rank has none


def test_alone_rows_are_what_they_are():
    rows = normal(3, 2)
    assert distributed.gathered(rows) is rows

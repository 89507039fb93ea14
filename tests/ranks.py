"""Functions run on several processes of a real process group (gloo), and what each of them returned."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _work(rank: int, ranks: int, port: int, path: str, functions: list[Callable[[], Any]]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    torch.save([function() for function in functions], f"{path}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(path: Path, *functions: Callable[[], Any], ranks: int = 2) -> list[list[Any]]:
    """For each rank what each function returned there: tensors and plain values.

    Args:
        path: an empty folder.
        functions: functions of a module, which the processes can import.
        ranks: processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked from one process that has imported what takes long, whichever test module comes first. Not from this one,
    # which may have threads and a GPU.
    multiprocessing.set_forkserver_preload(["torch._dynamo", "mfoc"])
    arguments = (ranks, port, str(path), list(functions))
    mp.start_processes(_work, arguments, nprocs=ranks, start_method="forkserver")
    return [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]

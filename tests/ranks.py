"""Functions run on several processes of a real process group (gloo), and what each of them returned."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _join(rank: int, ranks: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)


def _work(
    rank: int,
    ranks: int,
    port: int,
    path: str,
    functions: list[Callable[[], Any]],
    barrier: bool,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)  # the server may have been started by a test before
    _join(rank, ranks, port)
    torch.save([function() for function in functions], f"{path}/{rank}.pt")
    if barrier:
        # Not in a collective, where ranks that are out of step would wait for ever and hide what each has found.
        while not all(Path(f"{path}/{r}.pt").exists() for r in range(ranks)):
            time.sleep(0.01)
        dist.destroy_process_group()


def in_turn(runs: Iterable[Callable[[], Any]]) -> list[Any]:
    """Each run by a process group of its own, on the same processes: after a failure they are out of step.

    Args:
        runs: functions that leave nothing behind that waits for another rank.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    dist.barrier()
    dist.destroy_process_group()  # and the store's server with it
    store = dist.TCPStore(host, port + 1, ranks, is_master=rank == 0)
    found = []
    for k, run in enumerate(runs):
        dist.init_process_group("gloo", rank=rank, world_size=ranks, store=dist.PrefixStore(str(k), store))
        found.append(run())
        store.add(f"done/{k}", 1)
        while store.add(f"done/{k}", 0) < ranks:
            time.sleep(0.01)
        dist.destroy_process_group()
    dist.init_process_group("gloo", rank=rank, world_size=ranks, store=dist.PrefixStore("end", store))
    return found


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def on_ranks(
    path: Path, *functions: Callable[[], Any], ranks: int = 2, barrier: bool = True, within: float = 300.0
) -> list[list[Any]]:
    """For each rank what each function returned there: tensors and plain values.

    Args:
        path: an empty folder.
        functions: functions of a module, which the processes can import.
        ranks: processes.
        barrier: whether they end together; not where some of them do not end by themselves.
        within: seconds after which they are killed, and the test fails: ranks that wait for one another never end.
    """
    port = free_port()
    # Forked from one process that has imported what takes long, whichever test module comes first. Not from this one,
    # which may have threads and a GPU.
    multiprocessing.set_forkserver_preload(["torch._dynamo", "mfoc"])
    arguments = (ranks, port, str(path), list(functions), barrier, dict(os.environ))
    started = mp.start_processes(_work, arguments, nprocs=ranks, start_method="forkserver", join=False)
    until = time.monotonic() + within
    while not started.join(timeout=5.0):
        if time.monotonic() > until:
            for process in started.processes:
                process.kill()
            raise TimeoutError(f"{[function.__name__ for function in functions]} did not end within {within:.0f} s")
    return [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def _fail(rank: int, ranks: int, port: int, path: str, run: Any, fault: Any, victim: int) -> None:
    _join(rank, ranks, port)
    try:
        for instant in run(fault, victim):  # the victim says when
            Path(f"{path}/began").write_text(str(instant), encoding="ascii")
    except Exception as error:
        found = {name: getattr(error, name, None) for name in ("rank", "step")}
        found |= {"kind": type(error).__name__, "words": str(error), "ended": time.time()}
        torch.save(found, f"{path}/{rank}.pt")
    os._exit(0)  # without a word to the others


def failing_ranks(path: Path, run: Any, fault: Any, victim: int, *, ranks: int = 2) -> dict[int, dict[str, Any]]:
    """What ends each of the ranks where one of them fails, and how many seconds after.

    Args:
        path: an empty folder.
        run: a generator function of ``fault`` and ``victim``; the victim yields the time at which it fails.
        fault: what it does then.
        victim: the rank that fails.
        ranks: processes.
    """
    multiprocessing.set_forkserver_preload(["torch._dynamo", "mfoc"])
    context = multiprocessing.get_context("forkserver")
    arguments = (ranks, free_port(), str(path), run, fault, victim)
    processes = [context.Process(target=_fail, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    began = float((path / "began").read_text(encoding="ascii"))
    found = {r: torch.load(path / f"{r}.pt", weights_only=True) for r in range(ranks) if (path / f"{r}.pt").exists()}
    return {r: each | {"after": each["ended"] - began} for r, each in found.items()}

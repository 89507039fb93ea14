"""What torchrun runs in ``test_elastic``: a solve that goes on from its checkpoint, of which one worker is killed once.

    torchrun --nproc-per-node 2 --max-restarts 1 tests/distributed/elastic_run.py FOLDER RANK

Args:
    FOLDER: where the checkpoint is written, and ``0.pt`` and ``1.pt`` with what each worker found.
    RANK: the worker that is killed after step 13, while the others wait, the first time.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc

STEPS, KILLED, EVERY = 25, 13, 4


def solved(folder: Path, *, killed: bool = False) -> tuple[Any, int]:
    """The solve, and the step it went on from.

    Args:
        folder: of the checkpoint.
        killed: whether this process kills itself.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(40, 7), torch.randint(0, 3, (40,))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x, y, reduction="none")

    def kill(iterate: mfoc.Iterate) -> None:
        if killed and iterate.step == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    path = folder / "checkpoint"
    start = mfoc.hooks.load(path) if path.exists() else None
    solution = mfoc.solve(
        mfoc.from_module(net, loss),
        mfoc.Gradient(partial(torch.optim.Adam, lr=0.01)),
        mfoc.population((x, y), batch_size=12, seed=3),
        steps=STEPS, start=start, hooks=[kill, mfoc.hooks.Checkpoint(path, every=EVERY)],
    )  # fmt: skip
    values = [record["value"] for record in solution.history]
    return [solution.controls, solution.value, values], 0 if start is None else start.step


def main(folder: Path, victim: int) -> None:
    torch.set_num_threads(1)
    own, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    server, ranks = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), int(os.environ["WORLD_SIZE"])
    if attempt == 0 and own != victim:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the agent may see the death first
    # The agent's store still has gloo's addresses of before the restart.
    store = dist.PrefixStore(str(attempt), dist.TCPStore(*server, ranks, is_master=False))
    dist.init_process_group("gloo", rank=own, world_size=ranks, store=store)
    try:
        found, begun = solved(folder, killed=own == victim and attempt == 0)
    except mfoc.RankError as error:
        (folder / f"said-{own}").write_text(str(error), encoding="utf-8")
        raise
    torch.save({"found": found, "begun": begun, "attempt": attempt}, folder / f"{own}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

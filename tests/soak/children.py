"""Processes that are to die: forked from one that has torch, with its optimisers, imported already."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import torch

PATIENCE = 120.0  # seconds, after which a child hangs


def warm() -> None:
    """The first optimiser of a process imports torch._dynamo, which takes seconds."""
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


if os.environ.get("SOAK_WARM"):  # in the process that the others are forked from
    warm()


def _main(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # that a run was interrupted is what we want, not news
    connection.send(("done", function(connection.send, *arguments)))


class Child:
    """A function that runs in a process of its own: ``function(send, *arguments)``.

    Args:
        function: of a module, so that the process finds it.
        arguments: its other arguments.
    """

    _context: Any = None

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        if Child._context is None:
            Child._context = multiprocessing.get_context("forkserver")
            Child._context.set_forkserver_preload(["mfoc", "tests.soak.children", "tests.soak.solves"])
            os.environ["SOAK_WARM"] = "1"
            try:
                forkserver.ensure_running()
            finally:
                del os.environ["SOAK_WARM"]
        self._here, there = Child._context.Pipe()
        self._process = Child._context.Process(target=_main, args=(there, function, arguments), daemon=True)
        self._process.start()
        there.close()
        self.said: list[Any] = []
        self.result: Any = None

    def next(self, timeout: float = PATIENCE) -> Any:
        """What it sends next; None where it has ended, or nothing comes."""
        try:
            message = self._here.recv() if self._here.poll(timeout) else None
        except (EOFError, ConnectionResetError):
            return None
        if isinstance(message, tuple) and message[0] == "done":
            self.result = message[1]
        elif message is not None:
            self.said.append(message)
        return message

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it is still there."""
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def end(self) -> int | None:
        """Waits for its end; returns its exit code, negative for a signal, None where it hangs (it is killed then)."""
        while self.next() is not None:
            pass
        self._process.join(PATIENCE)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        self._here.close()
        return code


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own.

    Raises:
        RuntimeError: it died.
    """
    child = Child(function, *arguments)
    code = child.end()
    if code != 0:
        raise RuntimeError(f"{function.__name__}{arguments} ended with {code}")
    return child.result

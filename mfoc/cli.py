"""The ``mfoc`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mfoc.errors import MfocError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status.

    Args:
        arguments: what follows ``mfoc`` on the command line; ``sys.argv`` when None.
    """
    parser = argparse.ArgumentParser(prog="mfoc", description="Training as mean-field optimal control.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="solve handwritten digits with several solvers and certify the solutions")
    demo.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures (default: figures)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the split, the network and the batches (default: 0)")
    demo.add_argument("--scale", type=float, default=1.0, help="fraction of the steps to run (default: 1)")
    options = parser.parse_args(arguments)
    if not 0 < options.scale <= 1:
        parser.error(f"--scale is {options.scale}; expected a number in (0, 1]")
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed is {options.seed}; expected an integer from 0 to 2**32 - 1")
    try:
        from mfoc.demo import run

        run(options.out, seed=options.seed, scale=options.scale)
    except (MfocError, OSError) as error:
        sys.stderr.write(f"mfoc: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

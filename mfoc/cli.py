"""The ``mfoc`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfoc.errors import InvalidValue, MfocError

if TYPE_CHECKING:
    from torch import Tensor


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
    _add_phase_diagram(commands)
    doctor = commands.add_parser("doctor", help="look at what is installed: what does not fit, what is not safe")
    doctor.add_argument("--json", action="store_true", help="print it for a program to read")
    options = parser.parse_args(arguments)
    if options.command == "doctor":
        return _doctor(as_json=options.json)
    try:
        if options.command == "phase-diagram":
            _phase_diagram(options)
            return 0
        if not 0 < options.scale <= 1:
            parser.error(f"--scale is {options.scale}; expected a number in (0, 1]")
        if not 0 <= options.seed < 2**32:
            parser.error(f"--seed is {options.seed}; expected an integer from 0 to 2**32 - 1")
        from mfoc.demo import run

        run(options.out, seed=options.seed, scale=options.scale)
    except (MfocError, OSError) as error:
        sys.stderr.write(f"mfoc: {error}\n")
        return 1
    return 0


def _doctor(*, as_json: bool) -> int:
    """Exit status 1 where something is broken or not safe."""
    from mfoc.doctor import examine, report

    findings = examine()
    sys.stdout.write(report(findings, as_json=as_json) + "\n")
    return int(any(finding.bad for finding in findings))


def _add_phase_diagram(commands: Any) -> None:
    command = commands.add_parser("phase-diagram", help="draw the phases of a deep network of random weights")
    command.add_argument("--activation", required=True, help="its name in torch: tanh, relu, gelu, silu, erf, ...")
    grid = {"nargs": 3, "metavar": ("LOW", "HIGH", "COUNT")}
    command.add_argument(
        "--weight-variances", default=["0.02", "6", "300"], help="sigma_w^2 (default: 0.02 6 300)", **grid
    )
    command.add_argument("--bias-variances", default=["0", "2", "250"], help="sigma_b^2 (default: 0 2 250)", **grid)
    command.add_argument("--out", type=Path, help="file for the figure (default: phase_diagram_ACTIVATION.png)")


def _phase_diagram(options: argparse.Namespace) -> None:
    from mfoc.analysis.propagation import phase_diagram

    grids = [_grid("--weight-variances", options.weight_variances), _grid("--bias-variances", options.bias_variances)]
    out = options.out or Path(f"phase_diagram_{options.activation}.png")
    diagram = phase_diagram(options.activation, *grids)
    figure = diagram.plot()
    known = figure.canvas.get_supported_filetypes()
    if out.suffix[1:].lower() not in known:
        raise InvalidValue(f"--out is {str(out)!r}; expected a file name that ends in .{', .'.join(sorted(known))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    sys.stdout.write(f"{diagram}\nfigure: {out}\n")


def _grid(name: str, given: Sequence[str]) -> Tensor:
    """Evenly spaced numbers, LOW HIGH COUNT."""
    import torch

    expected = "expected LOW HIGH COUNT with LOW < HIGH and a whole COUNT of at least 2, as in 0 2 250"
    try:
        low, high, count = float(given[0]), float(given[1]), int(given[2])
    except ValueError as error:
        raise InvalidValue(f"{name} is {' '.join(given)} ({error}); {expected}") from error
    if not (low < high and count >= 2):
        raise InvalidValue(f"{name} is {' '.join(given)}; {expected}")
    return torch.linspace(low, high, count, dtype=torch.float64, device="cpu")


if __name__ == "__main__":
    sys.exit(main())

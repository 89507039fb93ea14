"""``mfoc phase-diagram``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfoc.cli.saving import check, save
from mfoc.errors import InvalidValue

if TYPE_CHECKING:
    from torch import Tensor

_EXAMPLES = """examples:
  mfoc phase-diagram --activation tanh
  mfoc phase-diagram --activation erf --weight-variances 0.5 4 100 --out erf.svg"""


def add(commands: Any) -> None:
    """Adds the command to those of ``mfoc``."""
    command = commands.add_parser(
        "phase-diagram",
        help="draw the phases of a deep network of random weights",
        description="Where a deep network of random weights is ordered, chaotic or critical (Poole et al. 2016).",
        epilog=_EXAMPLES,
    )
    command.add_argument("--activation", required=True, help="its name in torch: tanh, relu, gelu, silu, erf, ...")
    grid = {"nargs": 3, "metavar": ("LOW", "HIGH", "COUNT")}
    command.add_argument(
        "--weight-variances", default=["0.02", "6", "300"], help="sigma_w^2 (default: 0.02 6 300)", **grid
    )
    command.add_argument("--bias-variances", default=["0", "2", "250"], help="sigma_b^2 (default: 0 2 250)", **grid)
    command.add_argument("--out", type=Path, help="file for the figure (default: phase_diagram_ACTIVATION.png)")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from mfoc.analysis.propagation import phase_diagram

    grids = [_grid("--weight-variances", options.weight_variances), _grid("--bias-variances", options.bias_variances)]
    check(options.out or Path("phase_diagram.png"), "--out")
    diagram = phase_diagram(options.activation, *grids)
    sys.stdout.write(f"{diagram}\n")
    save(diagram.plot(), options.out or Path(f"phase_diagram_{options.activation}.png"))
    return 0


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

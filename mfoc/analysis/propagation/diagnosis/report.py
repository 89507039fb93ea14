"""What a diagnosis says, and how it is printed."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

from mfoc.analysis.propagation.diagnosis.drawing import draw_diagnosis
from mfoc.analysis.propagation.recording.statistics import Statistics
from mfoc.printing import by_identity, html_table, table

NAN = float("nan")
_SHOWN = 24  # blocks in the printed table; of more, the first and last


class Finding(enum.Enum):
    """What is found; its value says it in words."""

    TRAINS = "trains at this depth"
    VANISHES = "gradients vanish"
    EXPLODES = "gradients explode"
    BREAKS = "one block differs"
    TOKENS_COLLAPSE = "rank collapse"
    INPUTS_COLLAPSE = "inputs are told apart no more"
    GROWS = "activations grow without bound"
    DEAD = "units are dead"
    BLOCKED = "no gradient passes"
    ONE_BLOCK = "a single block"
    NON_FINITE = "not finite"


@dataclass(frozen=True, eq=False)
class BlockDiagnosis:
    """Of one block.

    Attributes:
        name: the path of its module; ``stage t`` of a problem.
        q: mean square of its activations: before the activation where it is a layer and an activation, at its output
            otherwise.
        c: mean cosine between those of different inputs; NaN for one input.
        tokens: mean cosine between different tokens of one input ``[N, tokens, d]``; NaN where there are none.
        constant: the share of units of its output that are the same for all inputs; NaN for one input.
        chi: gain ||J||_F^2 / n_out of a random perturbation, from its input to its output.
        chi_error: the standard error of chi.
        chi_backward: ||J^T g||^2 / ||g||^2 at the gradient g that arrives: of the loss, or random at the network's
            output without one; NaN where g is zero. Where something bypasses the block (the skips of a U-net) it is the
            ratio of the gradients that arrive at its input, over all paths, and at its output.
        arriving: ||g||, of the batch together.
        gradient: norm of the loss's gradient in its parameters; NaN without a loss.
        weight_variance: sigma_w^2 as read off the weights; NaN where it is not one dense or convolutional layer.
        bias_variance: sigma_b^2, likewise.
        q_theory: q by mean-field theory; NaN where theory does not reach.
        chi_theory: chi likewise.
        weights: how many matrices, filters and tables it holds.
        counted: whether the verdict counts it: neither the readout and averages over tokens or pixels before it, nor
            a first layer, behind which no weights wait for gradients. Those are met once, whatever the depth. Nor a
            recurrence over time.
        recurrent: whether it is a recurrence, whose chi is that of all its steps in time together.
    """

    name: str
    q: float
    c: float
    tokens: float
    constant: float
    chi: float
    chi_error: float
    chi_backward: float
    arriving: float
    gradient: float
    weight_variance: float = NAN
    bias_variance: float = NAN
    q_theory: float = NAN
    chi_theory: float = NAN
    weights: int = 0
    counted: bool = True
    recurrent: bool = False

    @property
    def depth_scale(self) -> float:
        """The depth scale xi = 1 / |ln chi|: over how many blocks like this one a perturbation changes e-fold."""
        if not 0 < self.chi < math.inf:
            return 0.0 if self.chi in (0, math.inf) else NAN
        return 1 / abs(math.log(self.chi)) if self.chi != 1 else math.inf


@by_identity
@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What ``diagnose`` found; print it, or draw it with ``.plot()``.

    Attributes:
        finding: what is concluded.
        verdict: the same in a sentence, with the numbers it rests on and a cure.
        blocks: one entry for each block, in the order they run.
        entering: the statistics of what enters the first block.
        inputs: how many inputs it is measured on.
        loss: the mean loss; NaN without one.
        backward_passes: what it cost beside one forward pass, in backward passes through the network.
    """

    finding: Finding
    verdict: str
    blocks: tuple[BlockDiagnosis, ...]
    entering: Statistics
    inputs: int
    loss: float
    backward_passes: int

    def __repr__(self) -> str:
        return f"Diagnosis({self.finding.value}: {len(self.blocks)} blocks, {self.inputs} inputs)"

    def __str__(self) -> str:
        header, rows = self._table()
        lines = [self.verdict, self._head, table(header, rows)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table(*self._table(), caption=f"{self.verdict}; {self._head}")

    def plot(self) -> Any:
        """q, c, chi and gradients against depth, theory dashed: a ``matplotlib.figure.Figure``.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        return draw_diagnosis(self)

    @property
    def _head(self) -> str:
        loss = "no loss: a random gradient at the output" if math.isnan(self.loss) else f"loss {self.loss:.4g}"
        counts = (
            f"{len(self.blocks)} block{'s' * (len(self.blocks) != 1)} on {self.inputs} input{'s' * (self.inputs != 1)}"
        )
        return f"Diagnosis of {counts}; {loss}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Columns that are empty throughout are left out; of many blocks the first and last are shown."""
        columns: dict[str, list[str]] = {
            "block": [str(k + 1) for k in range(len(self.blocks))],
            "name": [block.name for block in self.blocks],
            "chi": [f"{block.chi:.3g}" for block in self.blocks],
            "theory": [_number(block.chi_theory) for block in self.blocks],
            "chi back": [_number(block.chi_backward) for block in self.blocks],
            "xi": [_number(block.depth_scale, 2) for block in self.blocks],
            "q": [_number(block.q) for block in self.blocks],
            "theory q": [_number(block.q_theory) for block in self.blocks],
            "c": [_cosine(block.c) for block in self.blocks],
            "tokens": [_cosine(block.tokens) for block in self.blocks],
            "|gradient|": [_number(block.gradient) for block in self.blocks],
            "sw2": [_number(block.weight_variance) for block in self.blocks],
            "sb2": [_number(block.bias_variance, 2) for block in self.blocks],
        }
        kept = {name: cells for name, cells in columns.items() if any(cell != "-" for cell in cells)}
        rows = [list(row) for row in zip(*kept.values(), strict=True)]
        if len(rows) > _SHOWN:
            rows[_SHOWN // 2 : -_SHOWN // 2] = [["..."] + [""] * (len(kept) - 1)]
        return list(kept), rows


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}g}"


def _cosine(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value > 0.99 else f"{0.0 if abs(value) < 0.005 else value:.2f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"

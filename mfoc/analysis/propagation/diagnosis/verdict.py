"""What follows from the measures of a network's blocks: one finding, and a sentence with a cure.

A depth of L blocks of gain chi can be trained while L |ln chi| <= 6, six depth scales xi = 1 / |ln chi| (Schoenholz et
al. 2017, sec. 5); of unequal blocks the logarithms are added. What is met once, whatever the depth, is left out where
there are other blocks: see ``BlockDiagnosis.counted``. Whether gradients vanish is read off the gradient that arrives,
and off random perturbations where none does (a readout of zeros): attention averages those of single tokens away and
passes on what tokens share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from mfoc.analysis.propagation.diagnosis.report import BlockDiagnosis, Finding
from mfoc.analysis.propagation.recording.statistics import Statistics

_SCALES = 6.0  # depth scales that can be trained
_BREAKS = math.log(20)  # one block that differs by this much is named
_TOLD = math.log(1.02)  # gains that are printed as a range, not a number
_ALIKE = 0.99  # the cosine of tokens that have collapsed
_SAME = 1 - 1e-4  # that of inputs which are told apart no more
_ROUNDED = 1e-10  # a gain behind which nothing is left of a signal but rounding
_GROWS = 1e4  # of the mean square, over the whole depth
_CURE = "critical_init_(net, x) gives chi 1"


def conclude(
    rows: Sequence[BlockDiagnosis],
    first: Statistics,
    severed: str = "",
    bare: Sequence[str] = (),
    idle: Sequence[str] = (),
    frozen: bool = False,
    flat: bool = False,
) -> tuple[Finding, str]:
    """The finding and its sentence.

    Args:
        rows: one for each block, in order.
        first: of what enters the first block.
        severed: what does not depend on the input for autograd, in words.
        bare: the matrices that no block holds, by name.
        idle: those of the blocks whose gradient is exactly zero.
        frozen: whether no parameter requires grad.
        flat: whether the loss has a gradient of exactly zero at the output.
    """
    if severed:
        words = f"no gradient passes from the output to the input: {severed} does not depend on x for autograd"
        return Finding.BLOCKED, f"{words}; is there a detach, a rounding or torch.no_grad before it?"
    for check in (_non_finite, _dead, _blocked, _in_time, _tokens, _alone, _depth, _inputs, _grows):
        found = check(rows, first)
        if found is not None:
            break
    else:
        found = Finding.TRAINS, f"trains at this depth: {_gains(rows)}{_limit(rows)}"
    finding, words = found
    if bare and finding is not Finding.TRAINS:
        cure = f"matrices that no module applies, {_named(bare)}, act between the blocks: initialise them yourself"
        words = words.replace(_CURE, cure) if _CURE in words else f"{words}; {cure}"
    if flat and finding in (Finding.TRAINS, Finding.ONE_BLOCK):
        return Finding.BLOCKED, (
            "no gradient passes: that of the loss is exactly zero at the output; look at the loss and its targets "
            f"(the blocks by themselves: {words})"
        )
    return finding, "; ".join([words, *_notes(rows, idle, frozen)])


def _notes(rows: Sequence[BlockDiagnosis], idle: Sequence[str], frozen: bool) -> list[str]:
    """What the sentence would be misread without."""
    said = []
    recurrent = [k for k, row in enumerate(rows) if row.recurrent]
    if recurrent and any(row.counted for row in rows):
        said.append(f"recurrent over time and not counted: {', '.join(place(rows, k) for k in recurrent)}")
    if frozen:
        said.append("but every parameter is frozen (requires_grad=False): nothing would be trained")
    elif idle:
        why = "dead units, or weights of zero, lie in their way"
        said.append(f"but the gradient of {_named(idle)} is exactly zero: {why}")
    return said


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def place(rows: Sequence[BlockDiagnosis], k: int) -> str:
    """A block by its number and name."""
    return f"block {k + 1} ({rows[k].name})"


def _non_finite(rows: Sequence[BlockDiagnosis], first: Statistics) -> tuple[Finding, str] | None:
    for k, row in enumerate(rows):
        if math.isfinite(row.q):
            continue
        if not math.isfinite(first.q):
            return Finding.NON_FINITE, "x holds NaN or infinite values; diagnose on inputs that are finite"
        before = (rows[k - 1] if k else first).q
        words = f"{place(rows, k)}: its output is NaN or infinite, its input is finite (q = {before:.3g})"
        cure = "scale its weights, or those before it, down" if before > 1e6 else "look at its weights"
        return Finding.NON_FINITE, f"{words}; {cure}"
    for k in range(len(rows) - 1, -1, -1):
        if not math.isfinite(rows[k].chi):
            words = f"{place(rows, k)}: its derivative is NaN or infinite where its output is finite"
            return Finding.NON_FINITE, f"{words}; look for a square root or a norm of zeros in it"
    if not math.isfinite(rows[-1].arriving):
        words = "the gradient that arrives at the output is NaN or infinite, where the network's values are finite"
        return Finding.NON_FINITE, f"{words}; look at the loss and its targets"
    return None


def _dead(rows: Sequence[BlockDiagnosis], first: Statistics) -> tuple[Finding, str] | None:
    before: BlockDiagnosis | Statistics = first
    for k, row in enumerate(rows):
        if 0 < rows[max(k - 1, 0)].chi < _ROUNDED and k:  # that one is to blame: what it passes on is lost in rounding
            return None
        if (row.counted or k == 0) and row.constant >= 0.9 and not before.constant >= 0.5 and not before.c >= 0.99:
            share = f"{math.floor(100 * row.constant)} %"
            words = f"dead: {share} of the units of {place(rows, k)} are constant over all inputs"
            return Finding.DEAD, f"{words}; lower its biases or its learning rate, or start again: {_CURE}"
        before = row
    return None


def _blocked(rows: Sequence[BlockDiagnosis], _first: Statistics) -> tuple[Finding, str] | None:
    for k, row in enumerate(rows):
        if row.counted and row.chi == 0:
            cure = "is there a detach, a rounding or torch.no_grad in it, or are its weights zero?"
            return Finding.BLOCKED, f"{place(rows, k)}: no gradient passes, its output does not feel its input; {cure}"
    return None


def _in_time(rows: Sequence[BlockDiagnosis], _first: Statistics) -> tuple[Finding, str] | None:
    """Of a recurrence the gain of all steps together is no verdict: what they forget, they are meant to."""
    recurrent = [k for k, row in enumerate(rows) if row.recurrent]
    if not recurrent or any(row.counted for row in rows):
        return None
    words = " and ".join(f"{place(rows, k)}, chi {rows[k].chi:.3g}" for k in recurrent)
    why = "that is of all its steps in time together, and no chain of layers is left to judge"
    return Finding.ONE_BLOCK, f"recurrent: {words}; {why}; cut the sequences short to see what lasts how long"


def _tokens(rows: Sequence[BlockDiagnosis], first: Statistics) -> tuple[Finding, str] | None:
    seen = [k for k, row in enumerate(rows) if not math.isnan(row.tokens) and not row.recurrent]
    if len(seen) < 2 or first.tokens >= _ALIKE or rows[seen[-1]].tokens < _ALIKE:
        return None
    begun = seen[-1]
    for k in reversed(seen):
        if rows[k].tokens < _ALIKE:
            break
        begun = k
    words = f"rank collapse: tokens' correlation {rows[begun].tokens:.4f} from {place(rows, begun)} on"
    return Finding.TOKENS_COLLAPSE, f"{words}; keep the skip connections, make attention's output weights smaller"


def _alone(rows: Sequence[BlockDiagnosis], _first: Statistics) -> tuple[Finding, str] | None:
    """Of a single block depth says nothing, unless it holds layers that are no modules, or scripted ones."""
    if len(rows) != 1:
        return None
    words = f"{place(rows, 0)}, the only one, has chi {rows[0].chi:.3g}"
    if rows[0].weights < 2:
        return Finding.ONE_BLOCK, f"{words}: no weights lie behind it for a gradient to reach"
    if rows[0].chi > 0 and abs(math.log(rows[0].chi)) > _SCALES:
        finding = Finding.VANISHES if rows[0].chi < 1 else Finding.EXPLODES
        return finding, f"{finding.value}: {words}, over its {rows[0].weights} weights; {_CURE}"
    why = "its layers cannot be told apart: make them modules that are called one after the other"
    return Finding.ONE_BLOCK, f"{words} over its {rows[0].weights} weights; {why}"


def _depth(rows: Sequence[BlockDiagnosis], _first: Statistics) -> tuple[Finding, str] | None:
    counted = _counted(rows)
    logs = {k: math.log(_passes(rows[k])) for k in counted if _passes(rows[k]) > 0}
    if not logs:
        return None
    total, middle = math.fsum(logs.values()), median(logs.values())
    worst = max(logs, key=lambda k: abs(logs[k] - middle))
    alone = len(logs) > 2 and abs(logs[worst] - middle) > _BREAKS
    if alone and (abs(total) <= _SCALES or abs(total - logs[worst]) <= _SCALES):
        does = "shrink" if logs[worst] < 0 else "grow"
        times = math.exp(abs(logs[worst]) / 2)
        words = f"{place(rows, worst)}: chi {_passes(rows[worst]):.2g} where the others have {math.exp(middle):.2g}"
        return Finding.BREAKS, f"{words}: gradients {does} {times:.2g} times in this block alone; {_CURE}"
    if abs(total) <= _SCALES:
        return None
    finding = Finding.VANISHES if total < 0 else Finding.EXPLODES
    each = total / len(logs)
    words = (
        f"{finding.value} after about {_about(_SCALES / abs(each))}: {_gains(rows)}, depth scale {1 / abs(each):.2g}"
    )
    return finding, f"{words}; {_CURE}"


def _inputs(rows: Sequence[BlockDiagnosis], first: Statistics) -> tuple[Finding, str] | None:
    if first.q == 0:
        return Finding.INPUTS_COLLAPSE, "x is zero everywhere: nothing is told apart; diagnose on inputs like the data"
    last = rows[_counted(rows)[-1]]
    if not last.c > _SAME or first.c > _SAME:
        return None
    begun = next(k for k in range(len(rows)) if all(rows[j].c > _SAME for j in _counted(rows) if j >= k))
    words = f"inputs are told apart no more from {place(rows, begun)} on: correlation {rows[begun].c:.5f}"
    return Finding.INPUTS_COLLAPSE, f"{words}; smaller biases or larger weights: {_CURE}"


def _grows(rows: Sequence[BlockDiagnosis], first: Statistics) -> tuple[Finding, str] | None:
    largest = max(_counted(rows), key=lambda k: rows[k].q)
    if first.q > 0 and rows[largest].q / max(first.q, 1.0) > _GROWS:
        words = (
            f"activations grow: q = {rows[largest].q:.2g} at {place(rows, largest)}, from {first.q:.2g} at the input"
        )
        return Finding.GROWS, f"{words}; normalise the blocks, or scale their weights down"
    return None


def _counted(rows: Sequence[BlockDiagnosis]) -> list[int]:
    return [k for k, row in enumerate(rows) if row.counted] or list(range(len(rows)))


def _passes(row: BlockDiagnosis) -> float:
    """The gain of the gradient that arrives at a block."""
    return row.chi_backward if 0 < row.chi_backward < math.inf else row.chi


def _gains(rows: Sequence[BlockDiagnosis]) -> str:
    counted = [_passes(rows[k]) for k in _counted(rows)]
    low, high = min(counted), max(counted)
    over = f"over {_about(len(counted))}"
    if low > 0 and math.log(high / low) > _TOLD:
        return f"chi {low:.2f}-{high:.2f} {over}" if low >= 0.095 else f"chi {low:.2g}-{high:.2g} {over}"
    return f"chi {math.exp(math.fsum(map(math.log, counted)) / len(counted)) if low > 0 else high:.3g} {over}"


def _limit(rows: Sequence[BlockDiagnosis]) -> str:
    """At which depth of such blocks it would not train, where that is not far."""
    logs = [math.log(found) for k in _counted(rows) if (found := _passes(rows[k])) > 0]
    each = math.fsum(logs) / len(logs) if logs else 0.0
    if abs(each) * len(logs) < _SCALES / 4 or abs(each) < 1e-9:
        return ""
    does = "vanish" if each < 0 else "explode"
    after = _about(_SCALES / abs(each))
    return f" (depth scale {1 / abs(each):.2g}: gradients would {does} after about {after} like these)"


def _about(blocks: float) -> str:
    count = max(1, round(blocks))
    return f"{count} block{'s' * (count != 1)}"

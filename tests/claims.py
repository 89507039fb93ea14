"""For the sceptic: what the README says, the command that checks it, and what that command printed last.

    python -m tests.claims               # runs all of them (some minutes) and writes tutorials/site/pages/claims.md
    python -m tests.claims ranks tests   # only those whose command has one of these words

What was found is kept in ``claims.json`` beside this file, each with its own date and machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tests.benchmarks.timing import machine

ROOT = Path(__file__).parents[1]
FOUND = Path(__file__).with_suffix(".json")
PAGE = ROOT / "tutorials" / "site" / "pages" / "claims.md"
_PASSED = r"\d+ passed.*"
_HEAD = """# For the sceptic

Each row is a claim of the README, in its words; the command that checks it, run from a clone after `make test` has made
the environment; and the line that matters of what it printed last, when, and where. The page is written by
`python -m tests.claims`, which runs all of them. What has no row here is said in the documentation beside the command
that prints it.

| claim | command | last output | date |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        quote: the words of the README.
        command: what to run: ``pytest ...`` or ``-m ...`` of this Python, or ``mfoc ...``.
        shows: which line of its output is shown, the last that matches.
    """

    quote: str
    command: str
    shows: str = _PASSED


CLAIMS = [
    Claim(
        "solves it with Pontryagin's principle or with gradients, by changing one argument",
        "python -m pytest tests/solvers/test_agreement_table.py",
    ),
    Claim(
        "back-propagation is the gradient step on H",
        "python -m pytest tests/test_pontryagin.py -k gradient_of_pontryagin_is_autograd",
    ),
    Claim("Every solver by one argument", "python -m pytest tests/paradigms/test_composition.py"),
    Claim(
        "A formulation is a problem, so paradigms compose",
        "python -m tests.paradigms.composition",
        r"\| `maml`, query inputs attacked.*",
    ),
    Claim("which on a fixed population never raises J", "python -m pytest tests/solvers/test_msa.py -k emsa"),
    Claim(
        "with the residual, Hamiltonian gap and curvature of each stage and intervals that cover as often as they say",
        "python -m pytest tests/certificate",
    ),
    Claim(
        "solvers of one class agree, with ipopt and with Riccati too",
        "python -m tests.benchmarks.bench_agreement",
        r".*ipopt.*",
    ),
    Claim("with its exact law for finite populations", "python -m pytest tests/lq"),
    Claim("a checkpoint resumes to the bit", "python -m tests.soak", r"\d+ trials, \d+ faults"),
    Claim("is its mean, on any number of machines", "python -m pytest -s tests/test_ranks_table.py", r"\d+ rows, .*"),
    Claim(
        "Values and gradients are those of plain torch, or the network is refused by name and with the cure",
        "python -m pytest tests/doors",
    ),
    Claim("order, chaos and depth scales of any activation", "python -m pytest tests/analysis/propagation"),
    Claim("when gradient descent converges, NNGP and tangent kernels", "python -m pytest tests/analysis/kernel"),
    Claim(
        "noise scales, sharpness, whether an SDE describes your training, escape times",
        "python -m pytest tests/analysis/noise",
    ),
    Claim(
        "the information plane and the bottleneck as a control problem", "python -m pytest tests/analysis/information"
    ),
    Claim(
        "it trains alike from rates over four decades",
        "python tutorials/09_control_of_the_optimiser.py",
        r"Adam, controlled .*",
    ),
    Claim("value functions on grids and fitted", "python -m pytest tests/hjb"),
    Claim(
        "makes the mean-field game of a problem; `price_of_anarchy` between them", "python -m pytest tests/meanfield"
    ),
    Claim("`Box`, `Simplex`, `Ball`, `L1` on controls", "python -m pytest tests/bounds"),
    Claim(
        "`Equality` and `Inequality` at the end or along the path", "python -m pytest tests/solvers/test_augmented.py"
    ),
    Claim("one control for all, one for each, or a policy of state, time and law", "python -m pytest tests/policies"),
    Claim("`DiscreteMSA` for weights of one or two bits", "python -m pytest tests/solvers/test_discrete.py"),
    Claim("`Game` gives every particle an adversary", "python -m pytest tests/games"),
    Claim("`optim`, for any torch loop", "python -m pytest tests/optim"),
    Claim("whatever ends a solve, nothing is lost", "python -m pytest tests/solving/test_endings.py"),
    Claim("that fails ends the others within a second or two", "python -m pytest tests/distributed/test_failures.py"),
    Claim("every result prints in a few lines and draws itself", "python -m pytest tests/test_drawn_results.py"),
    Claim("in terminals and notebooks, and quiet elsewhere", "python -m pytest tests/hooks/test_progress.py"),
    Claim("torchattacks in and out", "python -m pytest tests/paradigms/adversarial"),
    Claim("Pyro in and out", "python -m pytest tests/paradigms/bayesian"),
    Claim("learn2learn in and out", "python -m pytest tests/paradigms/meta"),
    Claim("five solvers, the same seconds each, three seeds, who wins", "mfoc demo", r"Lowest J: .*"),
    Claim("a robust network, a Bayesian one, a meta-learned one", "mfoc demo --paradigms", r"robust clean .*"),
]


def check(claim: Claim) -> dict[str, Any]:
    """Runs the command of a claim.

    Raises:
        RuntimeError: it fails, or prints no line of the kind.
    """
    words = shlex.split(claim.command)
    binaries = Path(sys.executable).parent
    words[0] = sys.executable if words[0] == "python" else str(binaries / words[0])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    lines = [found[0].strip() for found in re.finditer(claim.shows, done.stdout)]
    if done.returncode or not lines:
        raise RuntimeError(
            f"{claim.command}: exit status {done.returncode}, no line like {claim.shows!r}\n{done.stdout}"
        )
    return {"output": lines[-1][:300], "date": str(date.today()), "machine": machine()}


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page of the documentation."""
    rows = []
    for claim in CLAIMS:
        last = found.get(claim.command, {"output": "not run yet", "date": ""})
        output = last["output"].replace("|", "\\|")
        shown = f"`` {output} ``" if "`" in output else f"`{output}`"
        rows.append(f"| {claim.quote} | `{claim.command}` | {shown} | {last['date']} |\n")
    machines = sorted({last["machine"] for last in found.values()})
    return _HEAD + "".join(rows) + "\nMachine: " + "; ".join(machines) + ".\n"


def known() -> dict[str, dict[str, Any]]:
    """What was found so far, by command; commands that are gone are left out."""
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    return {claim.command: found[claim.command] for claim in CLAIMS if claim.command in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the commands to run; all when none")
    words = parser.parse_args().words
    found, failed = known(), 0
    for claim in CLAIMS:
        if words and not any(word in claim.command for word in words):
            continue
        try:
            found[claim.command] = check(claim)
            print(f"{claim.command}: {found[claim.command]['output']}", flush=True)
        except RuntimeError as error:
            failed += 1
            print(error, flush=True)
        FOUND.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(found), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""SIGINT and SIGTERM at any moment: an ending with everything done, and a checkpoint of the last step."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from pathlib import Path

from tests.soak.children import Child, call
from tests.soak.known import known
from tests.soak.results import Outcome, Size
from tests.soak.solves import NAMES, checkpointed, judged, step_of

KINDS = {signal.SIGINT: 0, signal.SIGTERM: 143}  # and the exit code: after SIGINT the solution is returned


def run(size: Size) -> Outcome:
    """Every trial is one process; the moment is drawn from the time that the whole run takes."""
    draw, outcome = random.Random(size.seed), Outcome("SIGINT, SIGTERM")
    for trial in range(size.signals):
        for number, expected in KINDS.items():
            name = NAMES[trial % len(NAMES)]
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "run"
                child = Child(checkpointed, name, str(path))
                child.next()
                time.sleep(draw.uniform(0, 0.7 * known(name).seconds))
                child.send_signal(number)
                code, what = child.end(), f"{name}, {number.name}"
                outcome.trials += 1
                if child.result is not None and child.result["status"] == "MAX_STEPS":
                    outcome.count("ended before")
                    continue
                outcome.expect(code == expected, f"{what}: exit code {code}, expected {expected}")
                if child.result is not None:
                    said = child.result["status"], sorted(child.result["called"])
                    outcome.expect(said == ("INTERRUPTED", ["close", "finish"]), f"{what}: it ended {said}")
                    same = path.exists() and step_of(path) == child.result["step"]
                    outcome.expect(same, f"{what}: the checkpoint is not of the step that the solution is of")
                fault = call(judged, name, str(path), known(name).digests)
                outcome.expect(not fault, f"{what}: {fault}")
                outcome.count(number.name)
    return outcome

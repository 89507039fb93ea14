"""kill -9 at any moment: a run in several lives is bitwise the one that was left alone."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from pathlib import Path

from tests.soak.children import Child
from tests.soak.known import known
from tests.soak.results import Outcome, Size
from tests.soak.solves import NAMES, STEPS, checkpointed, step_of

LIVES = 4


def run(size: Size) -> Outcome:
    """Runs are killed up to four times each, at random moments of their steps and savings."""
    draw, outcome = random.Random(size.seed), Outcome("kill -9")
    kills, turn = 0, 0
    while kills < size.kills:
        name, turn = NAMES[turn % len(NAMES)], turn + 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            for _ in range(min(LIVES, size.kills - kills)):
                kills += _killed(name, path, draw.uniform(0, known(name).seconds / LIVES), outcome)
            child = Child(checkpointed, name, str(path))
            code = child.end()
            outcome.expect(code == 0, f"{name}: the last life ended with {code}")
            if code == 0:
                same = all(child.result[key] == value for key, value in known(name).solution.items())
                outcome.expect(same, f"{name}: killed and resumed, the solution is another")
                left = sorted(file.name for file in Path(folder).iterdir() if file.name != "run")
                outcome.expect(not left, f"{name}: files are left behind: {left}")
    return outcome


def _killed(name: str, path: Path, delay: float, outcome: Outcome) -> int:
    """One life: 1 where it was killed, 0 where it had ended by itself."""
    before = step_of(path)
    child = Child(checkpointed, name, str(path))
    message = child.next()
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    code = child.end()
    if code == 0 or (message is None and before >= STEPS[name]):
        outcome.count("ended before")
        outcome.trials += 1
        return 1
    outcome.trials += 1
    outcome.expect(code == -signal.SIGKILL, f"{name}: the process ended with {code}")
    try:
        after = step_of(path)
    except Exception as error:
        outcome.faults.append(f"{name}: after a kill the checkpoint cannot be read: {error}")
        return 1
    outcome.expect(after >= before, f"{name}: the checkpoint went back from step {before} to {after}")
    outcome.figures["steps made between kills"] = outcome.figures.get("steps made between kills", 0) + after - before
    return 1

"""Runs the benchmarks and writes their table: ``make bench``, ``make bench-quick``, ``make bench-gpu``.

python -m tests.benchmarks                         every script; benchmarks/benchmarks.md and .json
python -m tests.benchmarks --quick                 the headline ratios, in under three minutes
python -m tests.benchmarks --quick --readme        and into the README's section on speed
python -m tests.benchmarks --only lq ntk           those whose names hold one of the words
python -m tests.benchmarks --device cuda           those that know devices, on a GPU
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.benchmarks import runner, table


def main() -> int:
    """0 where every script ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="scripts that have a short version, in it")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--device", default="cpu", help="with another than cpu: the scripts that know devices")
    parser.add_argument("--out", type=Path, default=runner.ROOT / "benchmarks", metavar="FOLDER")
    parser.add_argument("--readme", action="store_true", help="write the headline ratios into the README")
    asked = parser.parse_args()
    knows = "device" if asked.device != "cpu" else "quick" if asked.quick else ""
    runs = []
    for script in runner.scripts(only=asked.only, knows=knows):
        print(f"---- {script}", flush=True)
        runs.append(runner.run(script, quick=asked.quick, device=asked.device))
    table.write(runs, asked.out)
    print(f"\n{table.markdown(runs, headline=asked.quick)}\n\n{asked.out / 'benchmarks.md'}")
    if asked.readme:
        table.into_readme(runs)
    failed = [f"{each.script}: {each.failed}" for each in runs if each.failed]
    if failed:
        print("failed:", *failed, sep="\n  ")
    return int(bool(failed) or not runs)


if __name__ == "__main__":
    sys.exit(main())

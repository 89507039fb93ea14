"""The table of benchmarks: what is collected, what is written, and the README's block. Nothing here is timed."""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests.benchmarks import runner, table, timing

RECORD = {"name": "a step", "median": 1.2, "low": 1.1, "high": 1.3, "of": "mfoc", "to": "by hand"}


def record(target="at most 1.05", headline=True):
    return {**RECORD, "target": target, "headline": headline}


@pytest.mark.parametrize(
    ("target", "says"),
    [("at most 1.05", False), ("at most 1.3", True), ("at least 1.2", True), ("at least 2x", False), ("", None)],
)
def test_a_target_is_met_or_missed_or_none(target, says):
    assert table.met(record(target)) is says


def test_what_is_reported_is_collected(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MFOC_BENCH_RECORDS", str(tmp_path / "records"))
    times = timing.interleaved({"a": lambda: None, "b": lambda: None}, rounds=3, clock=iter(range(1000)).__next__)
    timing.report("clocks", times.ratio("a", "b"), of="a", to="b", target="at most 1", headline=True)
    (line,) = map(json.loads, (tmp_path / "records").read_text().splitlines())
    assert (line["name"], line["median"], line["headline"]) == ("clocks", 1.0, True)


def test_the_files_hold_every_ratio_and_every_script_that_failed(tmp_path):
    runs = [runner.Run("bench_a", [record(), record(headline=False)], 2.0), runner.Run("bench_b", [], 1.0, "no peer")]
    table.write(runs, tmp_path / "new")
    told = json.loads((tmp_path / "new" / "benchmarks.json").read_text())
    assert [each["met"] for each in told["ratios"]] == [False, False]
    assert [each["failed"] for each in told["scripts"]] == ["", "no peer"]
    assert {"torch", "numpy"} <= told["versions"].keys()
    text = (tmp_path / "new" / "benchmarks.md").read_text()
    assert text.count("| a step |") == 2
    assert "bench_b`: 1 s, FAILED: no peer" in text
    assert table.markdown(runs, headline=True).count("| a step |") == 1


def test_the_block_is_replaced_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter\n")
    for _ in range(2):
        table.into_readme([runner.Run("bench_a", [record()])], readme)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| a step |") == 1


def test_the_readmes_block_is_well_formed_and_names_benchmarks_that_exist():
    text = table.README.read_text(encoding="utf-8")
    block = text.split("<!-- benchmarks: begin")[1].split("<!-- benchmarks: end -->")[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    assert lines[:2] == table.HEAD.splitlines()
    assert all(line.count("|") == 7 for line in lines)
    named = re.findall(r"`(bench_\w+)`", block)
    assert named
    assert len(named) == len(lines) - 2
    assert set(named) <= set(runner.scripts())


def test_what_knows_the_short_version_is_found_by_its_source():
    assert {"bench_solve", "bench_lq", "bench_ntk"} <= set(runner.scripts(knows="quick"))
    assert "bench_growth" not in runner.scripts(knows="quick")  # it has no headline
    assert set(runner.scripts(knows="quick")) < set(runner.scripts())
    assert runner.scripts(only=["lq", "ntk"]) == ["bench_lq", "bench_ntk"]


def test_a_script_that_fails_says_why_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    assert runner.run("bench_lq").failed == "no word of why"

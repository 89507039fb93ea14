"""Which formulation goes with which solver: the README's table, measured."""

import logging

import pytest

from tests.paradigms.composition import CERTIFICATE, FORMULATIONS, SOLVERS, row, table
from tests.readme import README

ROWS = {
    name: line
    for line in README.read_text(encoding="utf-8").splitlines()
    for name in FORMULATIONS
    if f"| {name} |" in line
}


@pytest.mark.parametrize("name", FORMULATIONS)
def test_the_readme_says_what_is_so(name, caplog):
    caplog.set_level(logging.ERROR)
    cells = row(name)
    assert ROWS[name] in table({name: cells})
    for solver, found in cells.items():
        assert (found.mark == "-") == bool(found.words), solver
        assert not found.words or len(found.words) > 40, "a refusal says what to do instead"


def test_every_solver_and_the_certificate_has_a_column():
    head = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| problem |"))
    assert head.count("|") == len(SOLVERS) + 3
    assert CERTIFICATE in head

"""The page for the sceptic: its claims are the README's, its commands are there, and it shows what was found last."""

import shlex
from pathlib import Path

import pytest

from tests import claims
from tests.readme import README

TEXT = " ".join(README.read_text(encoding="utf-8").split())
BY_COMMAND = {claim.command: claim for claim in claims.CLAIMS}


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.quote[:40])
def test_the_readme_says_so_and_the_command_is_there(claim):
    assert claim.quote in TEXT
    words = shlex.split(claim.command)
    named = [Path(word) for word in words if "/" in word]
    named += [Path(word.replace(".", "/")) for word in words if word.startswith("tests.")]
    for path in named:
        assert (claims.ROOT / path).exists() or (claims.ROOT / path).with_suffix(".py").exists(), path


def test_no_command_stands_for_two_claims():
    assert len(BY_COMMAND) == len(claims.CLAIMS)


def test_the_page_is_what_was_found():
    assert claims.PAGE.read_text(encoding="utf-8") == claims.page(claims.known())


def test_a_command_that_fails_or_says_nothing_of_the_kind_is_no_proof():
    with pytest.raises(RuntimeError, match="exit status 3"):
        claims.check(claims.Claim("", "python -c 'raise SystemExit(3)'"))
    with pytest.raises(RuntimeError, match="no line like"):
        claims.check(claims.Claim("", "python -c 'print(1)'"))


def test_the_last_line_of_the_kind_is_kept():
    found = claims.check(claims.Claim("", "python -c 'print(\"3 passed in 1 s\\n4 passed in 2 s\\nend\")'"))
    assert found["output"] == "4 passed in 2 s"
    assert {"date", "machine"} <= found.keys()

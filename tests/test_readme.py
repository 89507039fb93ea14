"""Every snippet of the README runs, in order of appearance, each by itself, and prints what is shown below it."""

import re

import pytest

from tests.readme import README, alike, replaced, run, snippets

TEXT = README.read_text(encoding="utf-8")
SNIPPETS = snippets(TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number):
    printed, expected = run(SNIPPETS[number].code), SNIPPETS[number].output
    assert expected is None or alike(printed, expected), printed


def test_it_opens_with_a_picture_and_an_example_of_some_lines_whose_output_is_shown():
    assert TEXT.index("![") < TEXT.index("```python") < 1000
    assert len(SNIPPETS[0].code.strip().splitlines()) <= 20
    assert SNIPPETS[0].output


def test_what_it_names_exists():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (\w+)`|    make (\w+)", TEXT)):
        assert f"\n{''.join(target)}:" in makefile, target
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (README.parent / path).exists(), path


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("J = 1.0301\n", True),
        ("J = 1.20\n", False),
        ("K = 1.03\n", False),
        ("J = 1.03 2\n", False),
        ("J = nan\n", False),
    ],
)
def test_outputs_are_alike_in_words_and_nearly_in_numbers(printed, same):
    assert alike(printed, "J = 1.0300") == same


def test_a_block_is_replaced_and_nothing_else():
    page = "a\n<!-- x: begin, by hand -->\nold\n<!-- x: end -->\nb <!-- y: end -->"
    assert replaced(page, "x", "new\n") == "a\n<!-- x: begin, by hand -->\n\nnew\n\n<!-- x: end -->\nb <!-- y: end -->"
    with pytest.raises(AssertionError, match="no mark"):
        replaced(page, "z", "new")

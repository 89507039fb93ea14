"""The page that a tutorial and its outputs make, and what Markdown is taught for all pages."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from markdown.extensions import Extension
from markdown.inlinepatterns import HtmlInlineProcessor
from render import Cell

# The name of a tag of HTML ends at a space, a slash or the end of the tag; a comment stays one.
TAG = r"(</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>|<!--(?:(?!<!--|-->).)*-->)"


def title_of(script: Path) -> str:
    """The first heading of a tutorial."""
    found = re.search(r"^# # (.+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].strip() if found else script.stem[3:].replace("_", " ").capitalize()


def captions(cells: list[Cell]) -> dict[str, str]:
    """What each image of a tutorial shows, in words: the heading that it is under, by the name of the image."""
    heading, words = "", {}
    for cell in cells:
        if cell.markdown:
            heading = [heading, *re.findall(r"^#+ (.+)$", cell.text, re.MULTILINE)][-1]
        for output in cell.outputs:
            if "image" in output:
                words[output["image"]] = re.sub(r"[`$\[\]*\\\"<>]", "", heading).strip()
    return words


def fenced(text: str, language: str) -> str:
    """Text in a fence that is longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def page_of(script: Path, cells: list[Cell], images: str, executed: bool) -> str:
    """The page of a tutorial, in Markdown.

    Args:
        script: the tutorial.
        cells: its cells, with outputs where it was executed.
        images: the folder of its images, from the page.
        executed: whether it was; if not, the page says so.
    """
    number = script.stem[:2]
    note = f"*This page is [`{script.name}`](source/{script.name}), executed. Run it: `mfoc tutorials run {number}`.*"
    if executed and os.environ.get("MFOC_SMOKE"):
        note = f"{note} **Its budgets are tiny here, to see that it runs: the numbers say nothing.**"
    if not executed:
        note = f"*This page is [`tutorials/{script.name}`](source/{script.name}), not executed here: `make docs` does.*"
    parts, shows = [], captions(cells)
    for cell in cells:
        parts.append(cell.text.strip() + "\n" if cell.markdown else fenced(cell.text.strip("\n"), "python"))
        for output in cell.outputs:
            if "image" in output:
                parts.append(f"![{shows[output['image']]}]({images}/{output['image']})\n")
            else:
                parts.append(fenced(output["text"], "text"))
        if note and cell.markdown:
            parts.append(note + "\n")
            note = ""
    return "\n".join(parts)


class Angles(Extension):
    """Takes for HTML only what can be: `<p, f>` in running text is an inner product, and no tag."""

    def extendMarkdown(self, md: Any) -> None:  # noqa: N802, D102, RUF100
        md.inlinePatterns.register(HtmlInlineProcessor(TAG, md), "html", 90)

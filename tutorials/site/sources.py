"""Parts of other files of the repository, for the pages that include them, so that nothing is written twice."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
INCLUDE = re.compile(r'^\{\{ (?P<file>\S+\.md)(?: "(?P<part>[^"]+)")?(?P<optional> if there)? \}\}$', re.MULTILINE)

# Where what these files link to is on the site.
MOVED = {"CONTRIBUTING.md": "architecture.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}


def without_code(text: str) -> str:
    """The text with fenced code blanked, line by line, so that a comment in code is no heading."""
    return re.sub(
        r"^(`{3,})[^\n]*\n.*?^\1$", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.MULTILINE | re.DOTALL
    )


def section(text: str, heading: str) -> str | None:
    """What stands under the first heading that the pattern `heading` is found in, up to the next of its level."""
    bare = without_code(text)
    headings = re.finditer(r"^(#+) (.+)$", bare, re.MULTILINE)
    found = next((each for each in headings if re.search(heading, each[2], re.IGNORECASE)), None)
    if found is None:
        return None
    rest = re.compile(rf"^#{{1,{len(found[1])}}} ", re.MULTILINE).search(bare, found.end())
    return text[found.end() : rest.start() if rest else len(text)].strip("\n")


def between(text: str, name: str) -> str | None:
    """What stands between `<!-- name: begin ... -->` and `<!-- name: end -->`."""
    found = re.search(rf"<!-- {name}: begin.*?-->\n(.*?)<!-- {name}: end", text, re.DOTALL)
    return found[1].strip("\n") if found else None


def part(file: str, wanted: str | None) -> str | None:
    """A file of the repository, a section of it, or what is between its markers `markers:NAME`."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if wanted is None:
        return text
    return between(text, wanted.removeprefix("markers:")) if wanted.startswith("markers:") else section(text, wanted)


def included(markdown: str, page: str) -> str:
    """The Markdown of a page with its includes, `{{ FILE "HEADING" }}`, put in; links in them point into the site.

    Args:
        markdown: the page.
        page: its path in the site, for the links.

    Raises:
        LookupError: if the file has no such part, unless the include says `if there`.
    """

    def put(found: re.Match[str]) -> str:
        text = part(found["file"], found["part"])
        if text is None:
            if found["optional"]:
                return ""
            raise LookupError(f"{page} includes {found['part']!r} of {found['file']}, which has no such part")
        return linked(text, page)

    return INCLUDE.sub(put, markdown)


def linked(text: str, page: str) -> str:
    """Text from the root of the repository with its links to what the site has; of other links the words are left."""
    up = "../" * page.count("/")

    def point(found: re.Match[str]) -> str:
        words, target, anchor = found["words"], found["target"], found["anchor"] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        if not target:  # a place in the file, which need not be in the part
            return words
        if target in MOVED:
            return f"{found['bang']}[{words}]({up}{MOVED[target]}{anchor if target != 'README.md' else ''})"
        if found["bang"] and target.startswith("tutorials/pictures/"):
            return f"![{words}]({up}{target.removeprefix('tutorials/')})"
        if re.fullmatch(r"tutorials/\d\d_\w+\.py", target):
            return f"[{words}]({up}{target[:-3]}.md)"
        return words

    pattern = r"(?P<bang>!?)\[(?P<words>[^\[\]\n]*(?:\n[^\[\]\n]+)?)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)"
    outside = re.split(r"(^`{3,}.*?^`{3,}$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        piece if piece.startswith("```") else _pictures(re.sub(pattern, point, piece), up) for piece in outside
    )


def _pictures(text: str, up: str) -> str:
    """Pictures that are links themselves, to what the site has."""
    return re.sub(r"(!\[[^\]]*\]\([^)]+\))\]\((tutorials/\d\d_\w+)\.py\)", rf"\1]({up}\2.md)", text)

"""An extension of Markdown: `<p, f>` in running text is an inner product, and no tag of HTML."""

from __future__ import annotations

from typing import Any

from markdown.extensions import Extension
from markdown.inlinepatterns import HtmlInlineProcessor

# A tag's name ends at a space, a slash or the end of the tag; a comment stays one.
TAG = r"(</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>|<!--(?:(?!<!--|-->).)*-->)"


class Angles(Extension):
    """Takes for HTML only what can be."""

    def extendMarkdown(self, md: Any) -> None:  # noqa: N802, D102, RUF100
        md.inlinePatterns.register(HtmlInlineProcessor(TAG, md), "html", 90)

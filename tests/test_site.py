"""The documentation site: it builds strictly, its links hold, nothing comes from outside, and its snippets run.

The tutorials are executed by tests/test_tutorials.py and `make docs`, not here: their pages are built without outputs.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

import mfoc
import paradigms

pytestmark = pytest.mark.slow
pytest.importorskip("mkdocs", reason="the site needs the dependency group `docs`: make installs it")

ROOT = Path(__file__).parent.parent
SITE = ROOT / "tutorials" / "site"
PAGES = sorted((SITE / "pages").rglob("*.md"))
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


class Page(HTMLParser):
    """What a page of the site refers to, and what may be referred to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = {key: value or "" for key, value in attrs}
        self.anchors.update(given[key] for key in ("id", "name") if key in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and "href" in given and given.get("rel") not in {"prev", "next", "canonical"}:
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once for all workers of a run, and its pages."""
    fcntl = pytest.importorskip("fcntl")
    root = tmp_path_factory.getbasetemp()
    out = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "site"
    with open(f"{out}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "sitemap.xml").exists():  # which mkdocs writes near the end
            build(out)
    return {path: Page(path) for path in sorted(out.rglob("*.html"))}


def build(out: Path) -> None:
    """Builds the site, without executed tutorials; any warning fails it."""
    command = [sys.executable, *f"-m mkdocs build --strict -q -f {SITE / 'mkdocs.yml'} -d {out}".split()]
    environment = {**os.environ, "MFOC_DOCS_CACHE": str(out / "none"), "NO_MKDOCS_2_WARNING": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def broken(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    """Whether a link from one page leads nowhere: to no file, or to no such place in a page."""
    parts = urlsplit(link)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return True
    # "__..." and "" are places that the theme's scripts know
    return (
        target in pages
        and not parts.fragment.startswith("__")
        and bool(parts.fragment and unquote(parts.fragment) not in pages[target].anchors)
    )


def test_links_anchors_images_and_scripts_are_there(site):
    wrong = [
        f"{path.name}: {link}"
        for path, page in site.items()
        if path.name != "404.html"  # whose links are from the root of a server
        for link in page.links + page.loaded
        if not re.match(r"(https?|mailto|data|javascript):", link) and broken(path, link, site)
    ]
    assert not wrong, wrong[:20]


def test_the_check_of_links_finds_what_is_broken(site):
    path = next(path for path in site if path.name == "concepts.html")
    for link in ("nowhere.html", "index.html#nowhere", "#nowhere", "assets/nowhere.png"):
        assert broken(path, link, site)
    assert not broken(path, "index.html", site)


def test_nothing_is_loaded_from_outside(site):
    for path, page in site.items():
        assert not [link for link in page.loaded if re.match(r"(https?:)?//", link)], path.name
    root = next(path for path in site if path.name == "404.html").parent
    for sheet in root.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
    assert (root / "assets/mathjax/tex-svg.js").stat().st_size > 1_000_000


def test_every_public_name_is_in_the_reference(site):
    names = {f"mfoc.{name}" for name in mfoc.__all__}
    for room in ("adversarial", "bayesian", "meta"):
        names |= {f"paradigms.{room}.{name}" for name in paradigms.load(room).__all__}
    there = set().union(*(page.anchors for path, page in site.items() if path.parent.name == "reference"))
    assert not names - there


def test_every_tutorial_has_a_page_that_the_navigation_names(site):
    index = next(page for path, page in site.items() if path.name == "index.html" and path.parent.name == "tutorials")
    scripts = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
    assert scripts
    assert {f"{script.stem}.html" for script in scripts} <= set(index.links)


def test_links_of_what_is_included_lead_into_the_site(monkeypatch):
    monkeypatch.syspath_prepend(str(SITE))
    from sources import linked

    for text, there in {
        "[a](tutorials/01_some.py)": "[a](../tutorials/01_some.md)",
        "[two\nlines](CONTRIBUTING.md#words)": "[two\nlines](../architecture.md#words)",
        "![a](tutorials/pictures/a.gif)": "![a](../pictures/a.gif)",
        "[![a](tutorials/pictures/a.gif)](tutorials/01_some.py)": "[![a](../pictures/a.gif)](../tutorials/01_some.md)",
        "[table](tests/TABLE.md), [below](#below), [out](https://example.org)": "table, below, [out](https://example.org)",
        "```python\nx[i](CHANGELOG.md)\n```": "```python\nx[i](CHANGELOG.md)\n```",
    }.items():
        assert linked(text, "guides/page.md") == there


def test_a_section_ends_where_the_next_of_its_level_begins(monkeypatch):
    monkeypatch.syspath_prepend(str(SITE))
    from sources import section

    text = "# A\n## One\n```\n# no heading\n```\n### Below\nx\n## Two\ny\n"
    assert section(text, "^one") == "```\n# no heading\n```\n### Below\nx"
    assert section(text, "Two") == "y"
    assert section(text, "no heading") is None


def test_an_inner_product_is_no_tag():
    """`<p, f>` in running text, of a page or a docstring, stays; tags do what tags do; code is left alone."""
    code = f"""
import sys; sys.path.insert(0, {str(SITE)!r})
import markdown, lessons
print(markdown.markdown("H = L + <p, f> *now* <br> `<p, f>` <b>x</b>", extensions=[lessons.Angles()]))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    product = "&lt;p, f&gt;"
    assert shown.strip() == f"<p>H = L + {product} <em>now</em> <br> <code>{product}</code> <b>x</b></p>"


def test_what_is_included_is_shown_as_it_stands(site):
    """The page on how to write pages shows what makes figures and numbers, and not what is made."""
    text = next(path for path in site if path.name == "architecture.html").read_text(encoding="utf-8")
    assert "{{ figures 07" in text
    assert "{{ printed 07" in text


def test_formulas_are_set_as_formulas(site):
    text = next(path for path in site if path.name == "concepts.html").read_text(encoding="utf-8")
    assert re.search(r'class="arithmatex">\\\[\s*\\begin\{aligned\}', text)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if SNIPPET.search(page.read_text("utf-8"))], ids=lambda page: page.stem
)
def test_snippets_run_and_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code, expected in SNIPPET.findall(page.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with redirect_stdout(printed), torch.random.fork_rng():
            exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
        same_print(printed.getvalue(), expected)


def same_print(printed: str, expected: str) -> None:
    """The same words, and numbers that agree to what differs between machines; what is tiny is rounding."""
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", expected).split()
    numbers = [float(number) for number in NUMBER.findall(expected)]
    got = [float(number) for number in NUMBER.findall(printed)]
    assert got == pytest.approx(numbers, rel=0.05, abs=0.011)


def test_commands_of_the_pages_are_understood():
    """Each `mfoc ...` that a page shows is read by the command, and the guide to it leaves none out."""
    from mfoc.cli.command import _parser

    parser, named = _parser(), set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"`mfoc ([a-z-][^`]*)`", text) + re.findall(r"^ +\$ mfoc (.+)$", text, re.MULTILINE):
            if line == "--version" or line.split()[-1].isupper():
                continue
            options = parser.parse_args([word for word in line.split() if word not in ("--help", "...")])
            if page.stem == "command":
                named.add(options.command)
    (commands,) = (action.choices for action in parser._actions if action.dest == "command")
    assert named == set(commands)


def test_what_pages_quote_of_the_tutorials_is_in_their_scripts():
    """The words of each pattern stand in the script; `make docs` fails where the tutorial prints no such number."""
    quoted = re.compile(r'\{\{ printed (\d\d) "(.+?)" \}\}')
    quotes = [found for page in PAGES for found in quoted.findall(page.read_text(encoding="utf-8"))]
    assert quotes
    for number, pattern in quotes:
        (script,) = (ROOT / "tutorials").glob(f"{number}_*.py")
        words = max(re.findall(r"[A-Za-z' -]+", re.sub(r"\\\S", "", pattern)), key=len).strip()
        assert len(words) >= 3, pattern
        assert words in script.read_text(encoding="utf-8"), f"{script.name} prints no {words!r}"


SCRIPT = """# %% [markdown]
# # A title
#
# $$x^2$$

# %%
from matplotlib.figure import Figure

print("one\\rtwo")
figure = Figure()
figure.subplots().plot([1, 2])
figure

# %%
1 + 1

# %%
1 + 1;
"""


def test_a_tutorial_is_executed_as_a_notebook_would_be(tmp_path):
    """Prints, values and figures are outputs in order; a semicolon hides; an error ends it with the script's line."""
    script = tmp_path / "01_some.py"
    script.write_text(SCRIPT, encoding="utf-8")
    code = f"""
import sys; sys.path.insert(0, {str(SITE)!r})
from pathlib import Path
import render, lessons
cells_, script = render.execute(Path({str(script)!r}), Path({str(tmp_path)!r})), Path({str(script)!r})
print(lessons.page_of(script, cells_, "figures", True))
script.write_text(script.read_text() + "\\n# %%\\n1 / 0\\n")
render.execute(script, script.parent)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    page = done.stdout
    assert page.startswith("# A title\n\n$$x^2$$\n")
    assert page.index("```text\ntwo\n```") < page.index("![A title](figures/01-1.png)")
    assert (tmp_path / "01-1.png").stat().st_size > 1000
    assert page.count("```text\n2\n```") == 1

    assert f"line {len(SCRIPT.splitlines()) + 3}" in done.stderr
    assert "ZeroDivisionError" in done.stderr

"""What mkdocs calls while it builds the site: pages that are not written by hand, and includes."""

from __future__ import annotations

import logging
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from lessons import Angles, captions, page_of, title_of
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from reference import reference
from render import CACHE, SITE, cells_of, kept, scripts
from sources import included, linked

logger = logging.getLogger("mkdocs.hooks")
PICTURES = SITE.parent / "pictures"
SHOWN = {".png", ".gif", ".svg"}
# What is made of the tutorials and pictures: {{ gallery }}, {{ figures 07 }}, {{ printed 07 "a (group)" }}.
MADE = re.compile(r'\{\{ (gallery|picture|figures|printed)(?: (\d\d))?(?: "([^"\n]+)")? \}\}')
SMOKE = "\n\n*The tutorials were executed with tiny budgets here: their numbers and figures say nothing.*\n"
Config = Any  # MkDocsConfig


def on_config(config: Config) -> Config:
    """Put the tutorials and the reference where the navigation names them."""
    generated = {
        "tutorials": ["tutorials/index.md", *({_name(script): f"tutorials/{script.stem}.md"} for script in scripts())],
        "reference": list(reference()),
    }
    config.nav = [
        {key: generated.get(value, value) if isinstance(value, str) else value for key, value in item.items()}
        for item in config.nav
    ]
    config.markdown_extensions.append(Angles())
    return config


def on_files(files: Files, config: Config) -> Files:
    """Add the tutorials, their figures and scripts, the reference, the pictures and MathJax."""

    def add(path: str, **what: Any) -> None:
        files.append(File.generated(config, path, **what))

    for script in scripts():
        cells = kept(script)
        if cells is None:
            logger.info(f"{script.name} is shown without outputs: `python tutorials/site/render.py` makes them")
        page = page_of(script, cells or cells_of(script.read_text(encoding="utf-8")), "figures", cells is not None)
        add(f"tutorials/{script.stem}.md", content=page)
        add(f"tutorials/source/{script.name}", abs_src_path=str(script))
        for image in images_of(script):
            add(f"tutorials/figures/{image.name}", abs_src_path=str(image))
    for picture in pictures():
        add(f"pictures/{picture.name}", abs_src_path=str(picture))
    for path, page in reference().items():
        add(path, content=page)
    add("tutorials/index.md", content=_tutorials())
    add("assets/mathjax/tex-svg.js", abs_src_path=str(_mathjax()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in what a page includes of other files, and what is made of the tutorials."""
    path = page.file.src_uri
    if path.startswith("reference/"):
        return markdown
    if re.match(r"tutorials/\d", path):
        return _sibling_links(markdown)
    makers = {"gallery": _gallery, "picture": _picture, "figures": _figures, "printed": _printed}
    made = MADE.sub(lambda found: makers[found[1]](*filter(None, found.groups()[1:])), markdown)
    if os.environ.get("MFOC_SMOKE") and made != markdown and path != "index.md":
        made += SMOKE
    try:
        return included(made, path)  # last: what is included is shown as it stands
    except (LookupError, OSError) as error:
        raise PluginError(str(error)) from error


def images_of(script: Path) -> dict[Path, str]:
    """The figures of a tutorial as they were shown when it was executed, and what they show."""
    return {CACHE / script.stem / image: words for image, words in captions(kept(script) or []).items()}


def pictures() -> list[Path]:
    """The pictures that are kept in the repository."""
    return sorted(path for path in PICTURES.glob("*") if path.suffix in SHOWN)


def _mathjax() -> Path:
    for file in metadata.files("sphinx-mathjax-offline") or []:
        if file.name == "tex-svg.js":
            return Path(str(file.locate()))
    raise PluginError(
        "the package sphinx-mathjax-offline has no tex-svg.js; install the group `docs` of pyproject.toml"
    )


def _sibling_links(markdown: str) -> str:
    """Links of a tutorial, to another (`02_x.py`) or out of the folder of tutorials, to what the site has."""
    markdown = re.sub(r"\]\((?:\./)?(\d\d_\w+)\.py\)", r"](\1.md)", markdown)
    return linked(re.sub(r"\]\(\.\./", "](", markdown), "tutorials/page.md") if "](../" in markdown else markdown


def _name(script: Path) -> str:
    return f"{script.stem[:2]}: {title_of(script)}"


def _tutorials() -> str:
    lines = [
        "# Tutorials",
        "Each is a script that runs by itself: `mfoc tutorials list` lists them, `mfoc tutorials run 01` runs one.",
        "",
    ]
    for script in scripts():
        lines.append(f"- [{_name(script)}]({script.stem}.md)")
    return "\n".join(lines) + "\n"


def _card(link: str, image: str, words: str) -> str:
    return f'<a href="{link}"><img src="{image}" alt="{words}" loading="lazy"><span>{words}</span></a>'


def _gallery() -> str:
    cards = [_card(f"pictures/{picture.name}", f"pictures/{picture.name}", _words(picture)) for picture in pictures()]
    for script in scripts():
        cards += [
            _card(f"tutorials/{script.stem}.html", f"tutorials/figures/{image.name}", f"{script.stem[:2]}: {words}")
            for image, words in images_of(script).items()
        ]
    if not cards:
        return "*The figures are made by `make docs`, which executes the tutorials.*"
    return '<div class="gallery">\n' + "\n".join(cards) + "\n</div>"


def _words(picture: Path) -> str:
    """What a picture is called: its name, in words."""
    return picture.stem.replace("_", " ").replace("-", " ")


def _script(number: str) -> Path:
    return next(script for script in scripts() if script.stem.startswith(number))


def _printed(number: str, pattern: str) -> str:
    """What the group of a pattern last finds in what a tutorial printed, so that no number is typed."""
    cells = kept(_script(number))
    if cells is None:
        return "(`make docs`)"
    text = "\n".join(output.get("text", "") for cell in cells for output in cell.outputs)
    found = re.findall(pattern, text, re.MULTILINE)
    if not found:
        raise PluginError(f"tutorial {number} prints nothing like {pattern!r} any more: mend the page that asks for it")
    return str(found[-1])


def _figures(number: str, words: str = "") -> str:
    """The figures of a tutorial, those under a heading with these words."""
    script = _script(number)
    images = {image: shows for image, shows in images_of(script).items() if words in shows}
    if kept(script) is not None and not images:
        raise PluginError(
            f"tutorial {number} has no figure under a heading with {words!r}: mend the page that asks for it"
        )
    if not images:
        return f"*The figures are on [the page of tutorial {number}](tutorials/{script.stem}.md) once it is executed.*"
    lines = [
        f"[![{shows}](tutorials/figures/{image.name})](tutorials/{script.stem}.md)" for image, shows in images.items()
    ]
    return "\n\n".join(lines)


def _picture() -> str:
    """The picture that moves, or the first that there is."""
    chosen = sorted(pictures(), key=lambda picture: picture.suffix != ".gif")[:1]
    return "".join(f"![{_words(picture)}](pictures/{picture.name})" for picture in chosen)

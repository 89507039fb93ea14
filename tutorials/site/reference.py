"""The pages of the reference: one for each public module, with every public name on exactly one of them."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

import mfoc
import paradigms

# What has a page besides the modules that `mfoc` exports, and those that its names live in.
ROOMS = (
    "mfoc.analysis.gaussian", "mfoc.analysis.propagation", "mfoc.analysis.kernel", "mfoc.analysis.noise",
    "mfoc.analysis.information", "mfoc.networks.packed", "mfoc.figures", "mfoc.solvers", "mfoc.populations",
)  # fmt: skip


def public(module: ModuleType) -> list[str]:
    """The public names of a module, in alphabetic order: its `__all__`, or what it defines itself."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if not name.startswith("_") and _own(module, value)]
    return sorted(names, key=str.lower)


def _own(module: ModuleType, value: Any) -> bool:
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return False
    inside = hasattr(module, "__path__") and value.__module__.startswith(module.__name__ + ".")
    return bool(inside or value.__module__ == module.__name__)


def _line(value: Any) -> str:
    """The first sentence of a docstring, for a table; generated ones of dataclasses say nothing."""
    text = inspect.cleandoc(getattr(value, "__doc__", None) or "").split("\n\n")[0].replace("\n", " ")
    own = value.__name__ + "(" if inspect.isclass(value) else "\0"
    if text.startswith(own) or not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
        return ""
    return text.replace("|", "\\|").replace("``", "`").replace("[", "\\[")


def modules() -> list[str]:
    """The names of the modules that have a page."""
    found = dict.fromkeys(ROOMS)
    for name in mfoc.__all__:
        value = getattr(mfoc, name)
        if inspect.ismodule(value):
            found[value.__name__] = None
        else:
            found[".".join(value.__module__.split(".")[:2])] = None
    names = sorted(name for name in found if name.startswith("mfoc."))
    return [*names, *(f"paradigms.{name}" for name in ("adversarial", "bayesian", "meta"))]


def home(name: str) -> str | None:
    """The module whose page shows `mfoc.<name>`; None for a module, which has its own."""
    value = getattr(mfoc, name)
    return None if inspect.ismodule(value) else ".".join(value.__module__.split(".")[:2])


def _entries(module: ModuleType) -> list[str]:
    """What a page shows, each by the shortest name that users import it by."""
    top = {name for name in mfoc.__all__ if home(name) == module.__name__}
    mine = {name for name in public(module) if not inspect.ismodule(getattr(module, name))}
    elsewhere = {name for name in mine if name in mfoc.__all__ and getattr(mfoc, name) is getattr(module, name)}
    names = [f"mfoc.{name}" for name in top] + [f"{module.__name__}.{name}" for name in mine - elsewhere - top]
    return sorted(names, key=lambda name: name.rsplit(".", 1)[1].lower())


def _page(name: str, pages: list[str]) -> str:
    module = import_module(name)
    parts = [
        f"# {name} {{ #{name} }}",
        f"::: {name}\n    options: {{ show_root_heading: false, show_root_toc_entry: false, members: false }}",
    ]
    below = [page for page in pages if page.rpartition(".")[0] == name]
    if below:
        parts.append("\n".join(f"- [`{page}`]({page}.md): {_line(import_module(page))}" for page in below))
    parts += [f"::: {entry}\n    options: {{ heading_level: 2 }}" for entry in _entries(module)]
    return "\n\n".join(parts) + "\n"


def _index(pages: list[str]) -> str:
    lines = [
        "# Reference",
        "Every public name, from the docstrings. What is imported from `mfoc` itself:",
        "| `mfoc.` | |\n|---|---|",
    ]
    for name in sorted(mfoc.__all__, key=str.lower):
        value = getattr(mfoc, name)
        if inspect.ismodule(value):
            continue
        lines[-1] += f"\n| [`{name}`][mfoc.{name}] | {_line(value)} |"
    lines += ["The modules:", "| module | |\n|---|---|"]
    for page in pages:
        lines[-1] += f"\n| [`{page}`]({page}.md) | {_line(import_module(page))} |"
    lines += ["## paradigms { #paradigms }"]
    lines += [
        f"::: paradigms.{name}\n    options: {{ heading_level: 3 }}"
        for name in sorted(paradigms.__all__)
        if name != "Formulation"
    ]
    return "\n\n".join(lines) + "\n"


def reference() -> dict[str, str]:
    """The Markdown of each page of the reference, by its path in the site."""
    pages = modules()
    return {"reference/index.md": _index(pages), **{f"reference/{page}.md": _page(page, pages) for page in pages}}

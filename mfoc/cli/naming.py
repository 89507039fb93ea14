"""What a user names on the command line as MODULE:NAME, and batches of data from what it names."""

from __future__ import annotations

import sys
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from mfoc.cli.ending import TheirFault, blaming
from mfoc.errors import InvalidValue


def look_up(named: str, option: str) -> Any:
    """Imports what is named, from the working directory as ``python -m`` does.

    Args:
        named: such as "nets:deep" or "package.module:Class.method".
        option: how it was given, for the error.

    Raises:
        InvalidValue: it is not MODULE:NAME, or there is no such module or name.
        TheirFault: the module raised something when it was imported.
    """
    module_name, colon, name = named.partition(":")
    if not (module_name and colon and name):
        raise InvalidValue(f"{option} is {named!r}; expected MODULE:NAME, as in nets:deep for `def deep()` in nets.py")
    if not all(part.isidentifier() for part in module_name.split(".")) or module_name.endswith(".py"):
        meant = ".".join(part for part in Path(module_name.removesuffix(".py")).parts if part.isidentifier()) or "nets"
        raise InvalidValue(f"{option} is {named!r}; expected a module as Python imports it, as in {meant}:{name}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = import_module(module_name)
    except ModuleNotFoundError as error:
        if module_name.startswith(f"{error.name}.") or error.name == module_name:
            raise InvalidValue(f"{option}: no module {module_name!r}, neither in {here} nor installed") from error
        raise TheirFault(f"importing {module_name}", error) from error
    except Exception as error:
        raise TheirFault(f"importing {module_name}", error) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidValue(f"{option}: {module_name!r} has no {name!r}; it has {_names(found)}")
        found = getattr(found, part)
    return found


def _names(found: Any) -> str:
    return ", ".join(sorted(name for name in vars(found) if not name.startswith("_"))) or "nothing"


def called(named: str, option: str, *, seed: int = 0) -> Any:
    """What a factory returns; what is no factory (a module, a tensor, a loader) is taken itself.

    Args:
        named: MODULE:NAME of it.
        option: how it was given, for the error.
        seed: of torch, set before the import and again before the call, as an import may draw numbers.

    Raises:
        InvalidValue: as of ``look_up``.
        TheirFault: the factory raised something.
    """
    import torch

    from mfoc.seeding import seeded

    with seeded(seed):
        found = look_up(named, option)
    if isinstance(found, torch.nn.Module) or not callable(found):
        return found
    with blaming(named), seeded(seed):
        return found()


def batch(data: Any, size: int) -> tuple[Any, Any]:
    """One batch, and what it is to be compared with, None where there is nothing.

    Args:
        data: a batch, a pair of one and its targets, a ``DataLoader`` (its first batch) or a ``Dataset``.
        size: how many of a ``Dataset``.

    Raises:
        InvalidValue: it is empty.
    """
    from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

    if isinstance(data, DataLoader):
        data = next(iter(data), None)
    elif isinstance(data, IterableDataset):
        data = default_collate(list(islice(iter(data), size)) or [()])
    elif isinstance(data, Dataset):
        data = default_collate([data[index] for index in range(min(size, len(data)))] or [()])  # type: ignore[arg-type]
    if data is None or (isinstance(data, list | tuple) and not data):
        raise InvalidValue("--data holds nothing; expected at least one batch")
    return tuple(data) if isinstance(data, list | tuple) and len(data) == 2 else (data, None)

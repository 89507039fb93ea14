"""``mfoc diagnose``: how signals and gradients pass through a network of the user's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mfoc.cli.ending import UNHEALTHY, TheirFault, blaming
from mfoc.cli.naming import batch, called, look_up
from mfoc.cli.saving import check, save
from mfoc.errors import InvalidValue

_EXAMPLES = """examples:
  mfoc diagnose nets:deep --shape 3,32,32           `def deep()` in nets.py returns a torch.nn.Module
  mfoc diagnose nets:gpt --shape 128 --vocabulary 50257
  mfoc diagnose nets:deep --data nets:digits --loss cross_entropy --plot deep.png

exit status:
  0  it trains at this depth (or is a single block)
  1  the command could not look: nothing is said of the network
  3  it does not train as it stands: gradients vanish or explode, units are dead, ...; the report says which block"""


def add(commands: Any) -> None:
    """Adds the command to those of ``mfoc``."""
    command = commands.add_parser(
        "diagnose",
        help="how signals and gradients pass through a network of yours, with a verdict and a cure",
        description="Imports MODULE from the working directory, calls FACTORY, and looks at what it returns.",
        epilog=_EXAMPLES,
    )
    command.add_argument("net", metavar="MODULE:FACTORY", help="returns a torch.nn.Module or an mfoc.Problem")
    inputs = command.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--data", metavar="MODULE:FACTORY", help="returns inputs, (inputs, targets) or a loader")
    inputs.add_argument("--shape", metavar="3,32,32", help="of one input: inputs are random, standard normal")
    command.add_argument("--batch", type=int, default=64, help="how many inputs (default: 64)")
    command.add_argument("--vocabulary", type=int, help="inputs are tokens: random integers below this")
    command.add_argument("--loss", help="of torch.nn.functional, or MODULE:NAME (default: a random gradient)")
    command.add_argument("--seed", type=int, default=0, help="of the network and the inputs (default: 0)")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw it, too")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    shape = _shape(options)
    if options.plot:
        check(options.plot, "--plot")

    import torch

    from mfoc.analysis.propagation import Finding, diagnose

    net = called(options.net, "MODULE:FACTORY", seed=options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    if options.data:
        given = called(options.data, "--data", seed=options.seed)
        with blaming(f"--data {options.data}"):
            inputs, targets = (given, None) if not isinstance(net, torch.nn.Module) else batch(given, options.batch)
    elif options.vocabulary:
        inputs, targets = torch.randint(options.vocabulary, shape, generator=generator), None
    else:
        inputs, targets = torch.randn(shape, generator=generator, dtype=_dtype(net)), None
    try:
        found = diagnose(net, inputs, _loss(options.loss), targets=targets, seed=options.seed)
    except (RuntimeError, IndexError) as error:
        raise TheirFault(f"{options.net} on inputs of this shape", error) from error
    sys.stdout.write(f"{found}\n")
    if options.plot:
        save(found.plot(), options.plot)
    return 0 if found.finding in (Finding.TRAINS, Finding.ONE_BLOCK) else UNHEALTHY


def _shape(options: argparse.Namespace) -> tuple[int, ...]:
    """Of the batch, (N, ...)."""
    for name, value, least in (("--batch", options.batch, 1), ("--seed", options.seed, 0)):
        if value < least:
            raise InvalidValue(f"{name} is {value}; expected at least {least}")
    if options.vocabulary is not None and (options.vocabulary < 1 or options.data):
        raise InvalidValue(f"--vocabulary is {options.vocabulary}; expected at least 1, beside --shape")
    try:
        sizes = tuple(int(size) for size in (options.shape or "1").replace("x", ",").split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise InvalidValue(f"--shape is {options.shape!r}; expected whole numbers from 1 on, as in 3,32,32")
    return options.batch, *sizes


def _dtype(net: Any) -> Any:
    """Of the network's first weights, so that inputs are of one kind with them."""
    import torch

    weights = net.parameters() if isinstance(net, torch.nn.Module) else iter(())
    return next((each.dtype for each in weights if each.is_floating_point()), torch.get_default_dtype())


def _loss(named: str | None) -> Any:
    from torch.nn import functional

    if named is None:
        return None
    if ":" in named:
        return look_up(named, "--loss")
    if not callable(getattr(functional, named, None)):
        raise InvalidValue(f"--loss is {named!r}; expected a name of torch.nn.functional or MODULE:NAME")
    return getattr(functional, named)

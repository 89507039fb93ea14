"""The ``mfoc`` command; ``python -m mfoc`` is the same."""

from mfoc.cli.command import main as main

"""``python -m mfoc`` is the command ``mfoc``."""

import sys

from mfoc.cli import main

if __name__ == "__main__":
    sys.exit(main())

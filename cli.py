"""Command line of mask-impact: a thin shell over ``engine``. Try ``python cli.py --help``."""

import sys

from engine.commands import main

if __name__ == "__main__":
    sys.exit(main())

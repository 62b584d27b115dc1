"""Command line of mask-impact: a thin shell over ``engine``. Try ``python cli.py --help``."""

import sys

try:
    from engine.commands import program
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    program()

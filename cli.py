"""Command line of mask-impact: a thin shell over ``engine``. Try ``python cli.py --help``."""

from engine.commands import program

if __name__ == "__main__":
    program()

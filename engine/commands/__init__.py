"""The command line: ``run`` (the default), ``verify``, ``analyze``, ``plot``, ``report`` and ``models``.

Each command is a module with ``build_parser()`` and ``execute(arguments) -> exit status``. Nothing heavy is imported
before the arguments are parsed, so ``--help`` and a misspelt option answer at once.
"""

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import NoReturn

from engine.commands.panics import panics_unsaid
from engine.errors import ImpactError, Interrupted
from engine.files import discard, one_line, show

COMMANDS = ("run", "verify", "analyze", "plot", "report", "models")
READERS = ("analyze", "plot", "report")
"""Those that read results, which may be damaged."""
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names (default: ``run``) and return the exit status of the process.

    0: done. 1: ``verify`` found a disagreement. 2: an error that the user can mend, said in one line on stderr.
    130: interrupted. Any other exception is a defect of the program and keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        name = _take_command(words)
        command = import_module(f"engine.commands.{name}")
        arguments = command.build_parser().parse_args(words)
        with panics_unsaid() if name in READERS else nullcontext():
            return command.execute(arguments)
    except ImpactError as error:
        show(f"mask-impact: error: {one_line(str(error))}", stream="stderr")
        return EXIT_USER_ERROR
    except Interrupted as stop:
        show(f"mask-impact: {stop}", stream="stderr")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        show("mask-impact: interrupted; nothing was written", stream="stderr")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout went away (``| head``). Python must not find that out again when it flushes at exit.
        discard(sys.stdout)
        return 0


def program() -> NoReturn:
    """``main`` as a whole process: what ``cli.py`` and the installed command call."""
    status = main()
    if sys._getframe(1).f_back is None:
        _leave(status)
    sys.exit(status)  # called from other code (a debugger, a profiler, a test), which has work left after this


def _leave(status: int) -> None:
    """End the process at once, if nothing is left to do; taking torch apart in memory costs a quarter of a second.

    Returns, so that Python ends in its own way, where torch was never loaded, where ``python -i`` goes on, while other
    threads work, and when a stream does not take what it holds.
    """
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    if "torch" not in sys.modules or sys.flags.inspect or others:
        return
    if _flushed():
        atexit._run_exitfuncs()  # what libraries have asked for: os._exit leaves it out
        _flushed()
        os._exit(status)


def _flushed() -> bool:
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _take_command(words: list[str]) -> str:
    """Take the command off the front of the words; options alone mean ``run``."""
    if not words or words[0].startswith("-"):
        return "run"
    if words[0] not in COMMANDS:
        raise ImpactError(
            f"unknown command {words[0]!r}; the commands are {', '.join(COMMANDS)}, and a text to read follows --prompt"
        )
    return words.pop(0)

"""The command line: ``run`` (the default), ``verify``, ``analyze``, ``plot``, ``report`` and ``models``.

Each command is a module with ``build_parser()`` and ``execute(arguments) -> exit status``. Nothing heavy is imported
before the arguments are parsed, so ``--help`` and a misspelt option answer at once.
"""

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from typing import NoReturn

from engine.commands.panics import panics_unsaid
from engine.errors import ImpactError, Interrupted
from engine.files import discard, one_line, show
from engine.interrupts import INTERRUPTED, Signals, noticed

COMMANDS = ("run", "verify", "analyze", "plot", "report", "models")
READERS = ("analyze", "plot", "report")
"""Those that read results, which may be damaged."""
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names (default: ``run``) and return the exit status of the process.

    0: done. 1: ``verify`` found a disagreement. 2: an error that the user can mend, said in one line on stderr.
    130: interrupted by Ctrl-C, 143: by SIGTERM. Any other exception is a defect of the program and keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with noticed() as signals:
        try:
            name = _take_command(words)
            command = import_module(f"engine.commands.{name}")
            arguments = command.build_parser().parse_args(words)
            with panics_unsaid() if name in READERS else nullcontext():
                status: int = command.execute(arguments)
            return status
        except (Exception, KeyboardInterrupt) as error:
            # Whatever a library makes of an exception that a signal raised inside of it is no defect of the program.
            if signals.number is not None or isinstance(error, KeyboardInterrupt):
                return _interrupted(error, signals)
            return _explained(error)


def _interrupted(error: BaseException, signals: Signals) -> int:
    """Say that the command was told to end; the exit status."""
    show(f"mask-impact: {error}" if isinstance(error, Interrupted) else INTERRUPTED, stream="stderr")
    return error.status if isinstance(error, Interrupted) else signals.status


def _explained(error: Exception) -> int:
    """Say what was wrong, if it is the user who can mend it; the exit status. Raises whatever else it is."""
    if isinstance(error, ImpactError):
        show(f"mask-impact: error: {one_line(str(error))}", stream="stderr")
        return EXIT_USER_ERROR
    if isinstance(error, BrokenPipeError):
        # The reader of stdout went away (``| head``). Python must not find that out again when it flushes at exit.
        discard(sys.stdout)
        return 0
    raise error


def program() -> NoReturn:
    """``main`` as a whole process: what ``cli.py`` and the installed command call."""
    status, alone = EXIT_INTERRUPTED, sys._getframe(1).f_back is None
    with suppress(KeyboardInterrupt), noticed(alone=alone):  # one may come when nothing is left to interrupt
        status = main()
        if alone:
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

"""The errors a user can cause.

Each message is one line that says what was wrong, what was expected and what to do. The command line prints it
without a traceback and exits with 2; whatever else is raised is a defect of the program and keeps its traceback.
"""


class ImpactError(ValueError):
    """Base of every error that the user can mend."""


class PromptError(ImpactError):
    """The prompt cannot be measured: empty, too short, too long, not text, or it needs a tokenizer that is missing."""


class SelectionError(ImpactError):
    """A chosen layer or token does not exist, or the choice cannot be read."""


class ModelError(ImpactError):
    """The model cannot be found, read or trusted, or its architecture is not supported."""


class CheckError(ModelError):
    """On this machine the engine does not compute what transformers computes, so its numbers cannot be trusted."""


class DeviceError(ImpactError):
    """The device or dtype does not exist here, or its memory is too small."""


class OutOfMemoryError(DeviceError):
    """The device's memory is too small for what was asked at once."""


class NumbersError(ImpactError):
    """The model produced NaN or infinite activations, so no distance can be measured."""


class ResultsError(ImpactError):
    """A results file cannot be read or written, or lacks the columns of an impact table."""


class InputError(ImpactError):
    """A file of prompts or of spans cannot be read, or lacks the columns that are needed."""


class WorkerError(ImpactError):
    """Process after process died over the same work, killed by the system or by a fault outside of Python."""


class Interrupted(KeyboardInterrupt):
    """A run over a set was stopped by a signal; what is finished stays, and the same call goes on from there.

    ``status`` is what the process exits with: 128 and the signal's number, 130 for Ctrl-C.
    """

    status = 130


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up (tokenizers, safetensors, polars): no ``Exception`` for Python."""
    return type(error).__name__ == "PanicException"

"""Errors whose message is meant for the user; the command line prints them as one line.

They are raised where the fault is seen, with a message that names what was given and what is expected. Any other
exception that reaches the user is a bug of this program.
"""

from __future__ import annotations

MAX_TEXT = 500


class UserError(ValueError):
    """Something the user gave cannot be used: a file, a size, an option. The message names it and what is expected."""


class ConfigError(UserError):
    """A configuration with an unknown key or a value that makes no sense; the message names the key."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another shape than the model; the message says which file and why."""


class MissingCheckpointError(CheckpointError):
    """A checkpoint, or a tokenizer, that is not where it was said to be, nor anywhere else that was looked at."""


class DataError(UserError):
    """A data file that is damaged or not as expected; the message names the file and the place in it."""


class MissingDataError(DataError):
    """Files or a folder of data that are not there, as far as anybody can see; the message names them."""


class SampleError(DataError):
    """One sample of many that cannot be used; the others can. The message names its file and its key.

    reason: a few words that say what is wrong with samples of this kind, by which they are counted.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class NotFiniteError(UserError):
    """Numbers became NaN or infinite: the weights are damaged, too large for the dtype, or were trained too boldly."""


class RunInUseError(UserError):
    """A run folder that another process writes into; the message names the process."""


class OutputError(UserError):
    """A file or folder that cannot be written; the message names it and the reason."""


class OutOfMemoryError(UserError):
    """Memory of the device or the machine is used up; the message says what was asked for, and what needs less."""


class RankError(UserError):
    """One of the processes that train together has lost another one, or waits for it in vain.

    told: another one that is left says so already.
    """

    def __init__(self, message: str, *, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(text: str) -> str:
    """A text of a size to be read, of MAX_TEXT characters: what was wrong may be a megabyte of it."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."

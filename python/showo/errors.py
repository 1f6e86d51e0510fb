"""Errors whose message is meant for the user; the command line prints them as one line."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used: a file, a size, an option. The message names it and what is expected."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another shape than the model; the message says which file and why."""


class DataError(UserError):
    """A data file that is damaged or not as expected; the message names the file and the place in it."""

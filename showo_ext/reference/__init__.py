"""Plain torch twins of the operators: same names, same signatures, written to be read. They import torch alone."""

from showo_ext.reference.corrupt_tokens import corrupt_tokens
from showo_ext.reference.remask import remask
from showo_ext.reference.resample import resample
from showo_ext.reference.sample_tokens import sample_tokens

__all__ = ["corrupt_tokens", "remask", "resample", "sample_tokens"]

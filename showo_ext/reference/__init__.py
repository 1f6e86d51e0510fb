"""Plain torch twins of the operators: same names, same signatures, written to be read. They import torch alone."""

from showo_ext.reference.corrupt_tokens import corrupt_tokens
from showo_ext.reference.lfq import lfq_decode, lfq_encode
from showo_ext.reference.omni_attention import omni_attention
from showo_ext.reference.remask import remask
from showo_ext.reference.resample import resample
from showo_ext.reference.rope_qkv import rope_qkv, rope_qkv_into_cache, rotary_tables
from showo_ext.reference.sample_tokens import sample_tokens
from showo_ext.reference.skinny_linear import skinny_linear
from showo_ext.reference.vq import codebook_lookup, vq_encode

__all__ = [
    "codebook_lookup",
    "corrupt_tokens",
    "lfq_decode",
    "lfq_encode",
    "omni_attention",
    "remask",
    "resample",
    "rope_qkv",
    "rope_qkv_into_cache",
    "rotary_tables",
    "sample_tokens",
    "skinny_linear",
    "vq_encode",
]

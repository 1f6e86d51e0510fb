"""showo_ext: the kernels of Show-o as torch operators, for CPU and CUDA tensors.

Each operator has one public function here, a plain-torch twin of the same name and signature in
`showo_ext.reference`, and a registered torch operator `torch.ops.showo_ext.<name>`.
"""

from showo_ext import _mask_containers as _mask_containers
from showo_ext._checks import HEAD_DIMS
from showo_ext._native import build_info
from showo_ext._version import __version__
from showo_ext.mask import OmniMask
from showo_ext.ops.corrupt_tokens import corrupt_tokens
from showo_ext.ops.lfq import lfq_decode, lfq_encode
from showo_ext.ops.omni_attention import omni_attention
from showo_ext.ops.remask import remask
from showo_ext.ops.resample import resample
from showo_ext.ops.rope_qkv import rope_qkv, rope_qkv_into_cache, rotary_tables
from showo_ext.ops.sample_tokens import sample_tokens
from showo_ext.ops.vq import codebook_lookup, vq_encode
from showo_ext.reference.resample import ResampleOutput

__all__ = [
    "HEAD_DIMS",
    "OmniMask",
    "ResampleOutput",
    "__version__",
    "build_info",
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
    "vq_encode",
]

"""The torch operators, one file each: public function, checks, schema, implementations, fake, autograd. And the list of
them, which the package's names, `build_info`, the benchmarks and the architecture tests come from.
"""

from dataclasses import dataclass

from showo_ext.ops.corrupt_tokens import corrupt_tokens
from showo_ext.ops.lfq import lfq_decode, lfq_encode
from showo_ext.ops.omni_attention import omni_attention
from showo_ext.ops.remask import remask
from showo_ext.ops.resample import resample
from showo_ext.ops.rope_qkv import rope_qkv, rope_qkv_into_cache, rotary_tables
from showo_ext.ops.sample_tokens import sample_tokens
from showo_ext.ops.skinny_linear import skinny_linear
from showo_ext.ops.vq import codebook_lookup, vq_encode

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


@dataclass(frozen=True)
class Rooms:
    """Where an operator lives."""

    family: str  # csrc/<family>, csrc/bindings/bind_<family>.cpp, benchmarks/bench_<family>.py
    file: str  # showo_ext/ops/<file>.py, showo_ext/reference/<file>.py, tests/<family>/test_<file>.py
    launcher: str  # <launcher>_cpu and <launcher>_cuda of the module: the forward ones
    cuda: str = "native"  # or "torch": on CUDA tensors the operator is made of torch's own, and has no kernel here


OPERATORS = {
    "omni_attention": Rooms("omni_attention", "omni_attention", "omni_attention_forward"),
    "rope_qkv": Rooms("rope_qkv", "rope_qkv", "rope_qkv_forward"),
    "lfq_encode": Rooms("codebook", "lfq", "lfq_encode"),
    "lfq_decode": Rooms("codebook", "lfq", "lfq_decode"),
    "vq_encode": Rooms("codebook", "vq", "vq_encode"),
    "codebook_lookup": Rooms("codebook", "vq", "codebook_lookup_forward"),
    "sample_tokens": Rooms("resample", "sample_tokens", "sample_tokens"),
    "remask": Rooms("resample", "remask", "remask"),
    "resample": Rooms("resample", "resample", "resample"),
    "corrupt_tokens": Rooms("resample", "corrupt_tokens", "corrupt_tokens"),
    "skinny_linear": Rooms("skinny_linear", "skinny_linear", "skinny_linear", cuda="torch"),
}

"""The list of operators: what exists under which name, for `build_info`, the benchmarks and the architecture tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rooms:
    """Where an operator lives."""

    family: str  # csrc/<family>, csrc/bindings/bind_<family>.cpp, benchmarks/bench_<family>.py
    file: str  # showo_ext/ops/<file>.py, showo_ext/reference/<file>.py
    launcher: str  # <launcher>_cpu and <launcher>_cuda of the module: the forward ones


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
}

"""What the tests of rope_qkv share."""

import torch

from showo_ext.testing import randint, randn


def problem(batch, length, heads, kv_heads, dim, dtype=torch.float32, seed=0, device="cpu", parameters=None):
    """qkv, positions and keyword arguments with every parameter."""
    kind = parameters or dtype
    qkv = randn(batch, length, (heads + 2 * kv_heads) * dim, dtype=dtype, seed=seed, device=device)
    arguments = {"num_heads": heads, "num_kv_heads": kv_heads}
    arguments["bias"] = randn(qkv.shape[2], dtype=kind, seed=seed + 1, device=device)
    for i, name in enumerate(("q_weight", "q_bias", "k_weight", "k_bias")):
        value = randn(dim, seed=seed + 2 + i) * 0.3 + (1 if "weight" in name else 0)
        arguments[name] = value.to(dtype=kind, device=device)
    return qkv, randint(0, 1200, (batch, length), seed=seed, device=device), arguments


def in_three(qkv, arguments):
    """The projection as three tensors."""
    heads, kv_heads = arguments["num_heads"], arguments["num_kv_heads"]
    dim = qkv.shape[2] // (heads + 2 * kv_heads)
    return tuple(x.contiguous() for x in qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=2))

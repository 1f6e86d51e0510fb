"""What torch's containers do with an `OmniMask`. Importing this module tells them.

Pytrees (torch.export, tree_map): the leaves are the intervals and the number of columns, so both may be dynamic.
Batches of a DataLoader: `default_collate` joins masks as `OmniMask.cat` does, and refuses masks of different lengths.
Files: torch.load(weights_only=True) reads masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data._utils.collate import default_collate_fn_map

from showo_ext._kept import Kept
from showo_ext._operator import NAMESPACE
from showo_ext.mask import OmniMask

FIELDS = ("intervals", "kv_length")


def _flatten(mask: OmniMask) -> tuple[list[Any], None]:
    return [getattr(mask, name) for name in FIELDS], None


def _flatten_with_keys(mask: OmniMask) -> tuple[list[Any], None]:
    return [(pytree.GetAttrKey(name), getattr(mask, name)) for name in FIELDS], None


def _unflatten(leaves: Any, context: None) -> OmniMask:
    """Without the checks of the constructor: a tree of masks may hold specs and placeholders instead of tensors."""
    mask = object.__new__(OmniMask)
    for name, leaf in zip(FIELDS, leaves, strict=True):
        object.__setattr__(mask, name, leaf)
    object.__setattr__(mask, "_kept", Kept())
    return mask


def _collate(masks: Sequence[OmniMask], **unused: Any) -> OmniMask:
    return OmniMask.cat(masks)


pytree.register_pytree_node(
    OmniMask,
    _flatten,
    _unflatten,
    serialized_type_name=f"{NAMESPACE}.OmniMask",
    flatten_with_keys_fn=_flatten_with_keys,
)
default_collate_fn_map[OmniMask] = _collate
torch.serialization.add_safe_globals([OmniMask])

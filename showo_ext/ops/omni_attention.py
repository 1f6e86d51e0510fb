"""omni_attention: attention under an OmniMask. CPU tensors take the plain-torch formula until the native kernel lands."""

from __future__ import annotations

from showo_ext.reference.omni_attention import omni_attention

__all__ = ["omni_attention"]

"""showo_ext: the kernels of Show-o as torch operators, for CPU and CUDA tensors.

Each operator has one public function here, a plain-torch twin of the same name and signature in
`showo_ext.reference`, and a registered torch operator `torch.ops.showo_ext.<name>`.
"""

from showo_ext import _mask_containers as _mask_containers
from showo_ext import ops
from showo_ext._checks import HEAD_DIMS
from showo_ext._native import build_info
from showo_ext._version import __version__
from showo_ext.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from showo_ext.mask import OmniMask
from showo_ext.ops import *  # noqa: F403
from showo_ext.ops._mask_plan import overwrite_mask
from showo_ext.reference.resample import ResampleOutput

__all__ = ["HEAD_DIMS", "OmniMask", "ResampleOutput", "__version__", "build_info", "overwrite_mask"]
__all__ += ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]
__all__ += ops.__all__

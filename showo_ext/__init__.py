"""showo_ext: the kernels of Show-o as torch operators, for CPU and CUDA tensors.

Each operator has one public function here, a plain-torch twin of the same name and signature in
`showo_ext.reference`, and a registered torch operator `torch.ops.showo_ext.<name>`.
"""

from showo_ext._native import build_info
from showo_ext._version import __version__

__all__ = [
    "__version__",
    "build_info",
]

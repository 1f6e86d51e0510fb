"""Runs tests of operators against the kernel package, in an interpreter that has no other showo_ext:

    python -I fresh.py PACKAGE pytest-arguments...

The working directory holds `tests` and pyproject.toml, for pytest's settings, and nothing else of the repository. The
package is loaded as its users load it; the names under which tests import showo_ext, and find its operators in
torch.ops, are made to mean the package.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

sys.modules["showo_ext"] = None  # type: ignore[assignment]  # whatever is installed: importing it is an ImportError

import pytest  # noqa: E402
import torch  # noqa: E402
from kernels import get_local_kernel  # noqa: E402


class Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """`showo_ext.a.b` is the module a.b of the package."""

    def __init__(self, package: ModuleType) -> None:
        self.package = package

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name.startswith("showo_ext.") else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.package.__name__ + spec.name.removeprefix("showo_ext"))
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec  # which the import machinery has put its own in place of


def main(folder: Path, arguments: list[str]) -> int:
    package = get_local_kernel(folder)
    sys.modules["showo_ext"] = package
    sys.meta_path.insert(0, Alias(package))
    torch.ops.showo_ext = getattr(torch.ops, package.__name__)
    code = int(pytest.main([*arguments, "-p", "no:cacheprovider"]))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("showo_ext", package.__name__):
            assert Path(str(module.__file__)).is_relative_to(folder.resolve()), f"{name} is {module.__file__}"
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

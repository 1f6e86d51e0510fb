"""Gives the template operator the place that a copy of it has: in the package, and in the compiled module."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import showo_ext
from showo_ext import _native, ops, reference

HERE = Path(__file__).parent
BUILT = HERE.parents[1] / "build" / "dev" / "template"  # by `make emulator`

ops.__path__.append(str(HERE / "showo_ext" / "ops"))
reference.__path__.append(str(HERE / "showo_ext" / "reference"))
showo_ext.scale_rows = importlib.import_module("showo_ext.ops.scale_rows").scale_rows
reference.scale_rows = importlib.import_module("showo_ext.reference.scale_rows").scale_rows


@functools.cache
def module_with_template() -> ModuleType | None:
    """_C_template: the extension's own objects and the template's, or None if it is not built."""
    for path in BUILT.glob("_C_template*.so"):
        loader = importlib.machinery.ExtensionFileLoader("_C_template", str(path))
        spec = importlib.util.spec_from_file_location("_C_template", path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module
    return None


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a test the operator finds its launchers in _C_template."""
    module = module_with_template()
    if module is None:
        pytest.skip("the template operator is not built; `make emulator` builds it")
    monkeypatch.setattr(_native, "_module", module)

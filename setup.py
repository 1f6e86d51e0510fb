"""Lets setuptools build the native module with CMake; everything else about the package is in pyproject.toml.

Build knobs (environment variables read here, handed to CMake as cache entries of the same name):
  SHOWO_EXT_CUDA        "auto" (default: CUDA kernels when nvcc is found), "1" (nvcc is required), "0" (CPU only)
  SHOWO_EXT_CUDA_ARCHS  compute capabilities to compile for, e.g. "80;90" (default "80"); PTX is kept for the last one
  SHOWO_EXT_BUILD_TYPE  CMake build type, default Release
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CMAKE_KNOBS = ("SHOWO_EXT_CUDA", "SHOWO_EXT_CUDA_ARCHS")


class CMakeBuild(build_ext):
    """Builds the one extension by running CMake and ninja."""

    def run(self) -> None:
        self.incremental = bool(self.inplace or getattr(self, "editable_mode", False))
        super().run()

    def build_extension(self, ext: Extension) -> None:
        output_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # An in-place build keeps its folder between calls, so that it is incremental; a wheel build starts afresh.
        build_dir = ROOT / "build" / "dev" if self.incremental else Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        drop_stale_cache(build_dir)

        configure = [
            find_tool("cmake"),
            f"-S{ROOT}",
            f"-B{build_dir}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('SHOWO_EXT_BUILD_TYPE', 'Release')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_cmake_dir()}",
            f"-DSHOWO_EXT_OUTPUT_DIR={output_dir}",
            f"-DSHOWO_EXT_VERSION={self.distribution.get_version()}",
        ]
        configure += [f"-D{knob}={os.environ[knob]}" for knob in CMAKE_KNOBS if knob in os.environ]
        jobs = self.parallel or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or len(os.sched_getaffinity(0))
        for step in (configure, [find_tool("cmake"), "--build", str(build_dir), "--target", "_C", f"-j{jobs}"]):
            if subprocess.run(step).returncode != 0:
                raise SystemExit(f"showo_ext: building the native module failed in {build_dir}, see above")


def find_tool(name: str) -> str:
    """The tool beside this Python (where pip puts it), else the one on PATH."""
    beside_python = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    if found is None:
        raise SystemExit(f"showo_ext: building needs {name}; `pip install {name}` provides it")
    return found


def pybind11_cmake_dir() -> str:
    import pybind11

    return str(pybind11.get_cmake_dir())


def drop_stale_cache(build_dir: Path) -> None:
    """Removes a CMake cache whose tools are gone: pip's isolated build environment lives only for one build."""
    cache = build_dir / "CMakeCache.txt"
    if not cache.exists():
        return
    entries = dict(
        line.split(":", 1)[0:1] + line.split("=", 1)[1:2]
        for line in cache.read_text().splitlines()
        if ":" in line.split("=", 1)[0] and "=" in line and not line.startswith(("#", "//"))
    )
    paths = [
        entries.get(key, "") for key in ("CMAKE_COMMAND", "CMAKE_MAKE_PROGRAM", "pybind11_DIR", "Python_EXECUTABLE")
    ]
    moved = entries.get("CMAKE_HOME_DIRECTORY") not in (None, str(ROOT))
    if moved or any(path and not Path(path).exists() for path in paths):
        cache.unlink()
        shutil.rmtree(build_dir / "CMakeFiles", ignore_errors=True)


setup(
    packages=find_packages(".", include=["showo_ext", "showo_ext.*"])
    + find_packages("python", include=["showo", "showo.*"]),
    package_dir={"showo_ext": "showo_ext", "showo": "python/showo"},
    ext_modules=[Extension("showo_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

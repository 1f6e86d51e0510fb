"""Builds the kernel package: showo_ext in the layout of the Hugging Face kernel hub (docs/kernel-package.md).

    make kernel-package [BACKEND=cuda]
    python -m tools.kernel_package.build [--backend cuda] [--output FOLDER]

It needs the in-tree build (`make dev`), whose objects it links once more, and a torch of version 2.10 or later, for its
headers and to see that the library loads. Nothing of this is needed for showo_ext itself.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from showo_ext import __version__

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "dev"
STABLE_ABI = "210"  # TORCH_TARGET_VERSION of cmake/kernel_package.cmake
NAME = "showo-ext"


def build(backend: str, output: Path) -> Path:
    """Writes <output>/build/<variant>, whose path it returns, and beside `build` a README.md and the LICENSE.

    Raises:
        SystemExit: there is no in-tree build, it has no such backend, or compiling failed.
    """
    library = build_library(backend)
    folder = output / "build" / variant(backend, library)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_python(partial)
    shutil.copy2(library, partial)
    (partial / "metadata.json").write_text(json.dumps(metadata(backend, library, partial), indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for file in (Path(__file__).with_name("README.md"), ROOT / "LICENSE"):
        shutil.copy(file, output)
    return folder


# ---------------------------------------------------------------- the library


def build_library(backend: str) -> Path:
    """Compiles the library, whose name is its namespace in torch.ops: another one for each state of the sources."""
    if not (BUILD / "CMakeCache.txt").exists():
        raise SystemExit(f"{BUILD} holds no build; run `make dev` first")
    digest = source_hash()
    settings = {"SHOWO_TORCH_DIR": Path(torch.__file__).parent, "SHOWO_KERNEL_HASH": digest}
    configure = ["cmake", f"-S{ROOT}", f"-B{BUILD}", *(f"-D{key}={value}" for key, value in settings.items())]
    compile_it = ["cmake", "--build", str(BUILD), "--target", f"kernel_package_{backend}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pip puts cmake and ninja beside python
    for step in (configure, compile_it):
        done = subprocess.run(step, capture_output=True, text=True, env={**os.environ, "PATH": path})
        if done.returncode != 0:
            raise SystemExit(f"{done.stdout}{done.stderr}\nbuilding the kernel package for {backend} failed, see above")
    return BUILD / "kernel_package" / f"_showo_ext_{backend}_{digest}.abi3.so"


def source_hash() -> str:
    files = [ROOT / "CMakeLists.txt"]
    for folder, pattern in (("cmake", "*"), ("csrc", "*"), ("showo_ext", "*.py"), ("tools/kernel_package", "*")):
        files += [path for path in (ROOT / folder).rglob(pattern) if path.is_file() and path.suffix != ".pyc"]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def facts(library: Path) -> dict[str, Any]:
    """What the library says about itself; it is loaded for that."""
    torch.ops.load_library(library)
    info = json.loads(getattr(torch.ops, library.name.partition(".")[0]).build_info())
    assert isinstance(info, dict)
    return info


def variant(backend: str, library: Path) -> str:
    version = facts(library)["cuda_version"].split(".")  # such as 13.0.48
    name = "cpu" if backend == "cpu" else f"cu{version[0]}{version[1]}"
    return f"torch-stable-abi{STABLE_ABI}-{name}-{platform.machine()}-{platform.system().lower()}"


# ---------------------------------------------------------------- the Python files


def write_python(folder: Path) -> None:
    """showo_ext with relative imports, and the module that calls the library."""
    package = ROOT / "showo_ext"
    files = {path.relative_to(package): path for path in package.rglob("*.py")}
    files[Path("_C.py")] = Path(__file__).with_name("_C.py")
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(with_relative_imports(path.read_text(), len(name.parts), path))


def with_relative_imports(text: str, depth: int, path: Path) -> str:
    """The text of a module `depth` levels below the folder that holds showo_ext: a kernel is loaded under a name of its
    own, where `showo_ext` is another package or none.

    Raises:
        ValueError: an import names showo_ext in a way that has no relative form.
    """
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(x.name.partition(".")[0] == "showo_ext" for x in node.names):
            raise ValueError(f"{path}, line {node.lineno}: has {ast.unparse(node)}, expected from showo_ext... import")
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            package, _, rest = (node.module or "").partition(".")
            if package == "showo_ext":
                absolute, relative = f"from {node.module} import", f"from {'.' * depth}{rest} import"
                lines[node.lineno - 1] = lines[node.lineno - 1].replace(absolute, relative, 1)
    return "".join(lines)


# ---------------------------------------------------------------- metadata.json


def metadata(backend: str, library: Path, folder: Path) -> dict[str, Any]:
    """As the hub's loader reads it. `id` is the name that the package is loaded under, and its namespace in torch."""
    described: dict[str, Any] = {"type": backend}
    if backend == "cuda":
        described["archs"] = cuda_archs(facts(library)["cuda_archs"])
    return {
        "name": NAME,
        "id": library.name.partition(".")[0],
        "version": int(__version__.partition(".")[0]),
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": described,
        "digest": {"algorithm": "sha256", "files": digests(folder)},
    }


def cuda_archs(built: str) -> list[str]:
    """ "80-real,80-virtual", as CMake has it, is ["8.0+PTX"] to the hub."""
    numbers, virtual = re.findall(r"(\d+)(\d[a-z]?)-real", built), re.findall(r"(\d+)(\d[a-z]?)-virtual", built)
    return [f"{major}.{minor}" + "+PTX" * ((major, minor) in virtual) for major, minor in numbers]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in files
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cpu", help="cuda: CUDA kernels, too")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "kernel_package", help="default: %(default)s")
    arguments = parser.parse_args()
    print(build(arguments.backend, arguments.output))


if __name__ == "__main__":
    main()

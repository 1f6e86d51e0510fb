"""The walls of the house: who may include or import whom, which rooms an operator has, how long a file may be."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import showo_ext
from showo_ext import _native
from showo_ext.ops import OPERATORS, Rooms
from tests.examples import examples

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "tests" / "template"  # laid out as the repository is, and held to the same rules
NATIVE_SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}


def sources(folder: str, *suffixes: str) -> list[Path]:
    """Files below a folder of the repository and of the template operator, without what was built."""
    below = [*(ROOT / folder).rglob("*"), *(TEMPLATE / folder).rglob("*")]
    found = {path for path in below if path.suffix in suffixes and path.is_file()}
    return sorted(path for path in found if not {"build", "__pycache__", ".venv"} & set(path.parts))


def native_sources() -> list[Path]:
    return sources("csrc", *NATIVE_SUFFIXES)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def imports(path: Path) -> set[str]:
    """Every module that a Python file imports by its full name, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level > 0:  # stays inside its own package
                continue
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---------------------------------------------------------------- csrc


FRAMEWORKS = {"module.cpp": ("pybind11/",), "stable_abi.cpp": ("torch/csrc/stable/",)}  # and the files that know them


@pytest.mark.parametrize("path", native_sources(), ids=name)
def test_one_file_knows_python_and_one_the_stable_abi_of_torch(path):
    in_bindings = path.parent.name == "bindings"
    for header in includes(path):
        if header.startswith(("torch", "ATen", "c10", "pybind11", "Python.h")):
            allowed = FRAMEWORKS.get(path.name, ()) if in_bindings else ()
            assert header.startswith(allowed), f"{name(path)} includes {header}"
        assert in_bindings or not header.startswith("bindings/"), f"{name(path)} includes {header}"


@pytest.mark.parametrize("path", [p for p in native_sources() if p.parent.name != "bindings"], ids=name)
def test_operators_do_not_know_each_other(path):
    own = path.parent.name
    for header in includes(path):
        if "/" in header:
            assert header.split("/")[0] in {own, "common"}, f"{name(path)} includes {header}"


def test_simd_sources_use_no_shared_templates():
    # A file compiled for AVX-512 must not hold the copy of std::vector<...> that the linker keeps for everybody.
    allowed = {"algorithm", "array", "functional", "map", "memory", "string", "thread", "vector"}
    for path in native_sources():
        if path.name.startswith("cpu") and path.suffix == ".cpp" and path.parent.name != "common":
            assert not allowed & set(includes(path)), f"{name(path)} includes {allowed & set(includes(path))}"


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is missing")
def test_simd_objects_share_no_code():
    objects = [p for isa in ("avx2", "avx512") for p in ROOT.glob(f"build/*/CMakeFiles/showo*_simd_{isa}.dir/**/*.o")]
    if not objects:
        pytest.skip("no in-tree build (make dev)")
    for path in objects:
        symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        weak = [line for line in symbols.splitlines() if re.search(r" [WVu] ", line)]
        assert not weak, f"{path.name} holds code that the linker may share: {weak[:5]}"


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is missing")
def test_module_depends_on_nothing_but_the_c_and_cpp_runtime():
    dynamic = subprocess.run(["readelf", "-d", _native.native().__file__], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[([a-z_+\-0-9]+)\.so", dynamic.stdout))
    runtime = {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "librt", "ld-linux-x86-64", "libgomp"}
    runtime |= {"ld-linux-aarch64", "libasan", "libubsan"}
    assert needed <= runtime - {"libgomp"}, f"unexpected libraries: {needed - runtime}"


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is missing")
def test_module_exports_only_its_entry_point():
    command = ["nm", "-D", "--defined-only", _native.native().__file__]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert [line.split()[-1] for line in symbols if line] == ["PyInit__C"]


# ---------------------------------------------------------------- Python


@pytest.mark.parametrize("path", sources("showo_ext", ".py", ".pyi"), ids=name)
def test_showo_ext_never_imports_showo(path):
    assert not {module for module in imports(path) if module.split(".")[0] == "showo"}


@pytest.mark.parametrize("path", sources("showo_ext/reference", ".py"), ids=name)
def test_references_import_torch_alone(path):
    # besides each other, and the mask, which is an argument
    allowed = ("torch", "math", "typing", "collections.abc", "dataclasses", "__future__", "showo_ext.reference")
    for module in imports(path):
        fine = module.startswith(allowed) or module in {"showo_ext", "collections"}
        assert fine or module.startswith("showo_ext.mask"), f"{name(path)} imports {module}"


def test_only_integrations_know_the_libraries_that_they_integrate_with():
    for path in [*sources("showo_ext", ".py"), *sources("python/showo", ".py")]:
        if "integrations" not in path.parts:
            assert not [module for module in imports(path) if "integrations" in module.split(".")], name(path)
        else:
            roots = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
            assert roots <= {"torch", "transformers", "showo_ext"}, f"{name(path)} imports {sorted(roots)}"


def test_showo_ext_needs_no_transformers():
    script = "import sys; sys.modules['transformers'] = None; import showo_ext, showo_ext.integrations"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", sources("python/showo", ".py"), ids=name)
def test_showo_uses_public_names_of_showo_ext(path):
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "showo_ext":
            assert not any(part.startswith("_") and part != "__version__" for part in parts), f"{name(path)}: {module}"
            assert parts[1:2] != ["ops"], f"{name(path)} imports {module}; the function is showo_ext.{parts[-1]}"


LAYERS = (
    {"model"},
    {"engine"},
    {"data"},
    {"train", "evaluate", "serve"},
    {"commands"},
)  # each may know those before it


@pytest.mark.parametrize("path", sources("python/showo", ".py"), ids=name)
def test_folders_of_showo_import_no_layer_above_or_beside_them(path):
    own = path.relative_to(ROOT / "python" / "showo").parts[0] if path.is_relative_to(ROOT / "python") else ""
    beside = {folder: number for number, folders in enumerate(LAYERS) for folder in folders}
    if own not in beside:  # a module of the package itself, such as a program
        return
    for module in imports(path):
        imported = [*module.split("."), ""][1] if module.startswith("showo.") else own
        if imported != own:
            assert beside.get(imported, -1) < beside[own], f"{name(path)} imports {module}"


@pytest.mark.parametrize("folder", ["showo_ext", "python/showo", "csrc"])
def test_no_environment_variable_changes_behaviour(folder):
    for path in sources(folder, ".py", *NATIVE_SUFFIXES):
        if path.name == "launch.py":  # which process torchrun has started
            continue
        text = path.read_text().replace('os.environ.get("XDG_CACHE_HOME")', "")  # where caches lie changes no result
        text = text.replace('os.environ.setdefault("GOMP_SPINCOUNT"', "")  # nor how torch's threads wait
        text = text.replace('os.environ["GRADIO_TEMP_DIR"] = ', "")  # nor where the page's uploads lie
        found = re.findall(r"os\.environ\b|os\.getenv|\bgetenv\(", text)
        assert not found, f"{name(path)} reads the environment: {found}"


FACTORIES = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "scalar_tensor", "tensor", "zeros"}


@pytest.mark.parametrize("path", sources("showo_ext", ".py"), ids=name)
def test_no_tensor_takes_the_default_dtype(path):
    # torch.set_default_dtype belongs to the caller; kernels read pointers as what was meant
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            stated = any(keyword.arg == "dtype" for keyword in node.keywords)
            assert stated or not of_torch, f"{name(path)}:{node.lineno}: torch.{node.func.attr} without dtype="


@pytest.mark.parametrize("path", sources("showo_ext", ".py"), ids=name)
def test_refusals_have_one_grammar(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind, message = ast.unparse(node.exc.func), ast.unparse(node.exc)
            if kind in {"TypeError", "ValueError"}:
                assert re.search(r" (is|has) .*, expected ", message), f"{name(path)}, line {node.lineno}: {message}"


def test_files_stay_short():
    limits = {".py": 400, ".pyi": 400, ".cpp": 600, ".h": 600, ".cu": 600, ".cuh": 600}
    too_long = []
    for folder in ("csrc", "showo_ext", "python", "tests", "benchmarks", "tools"):
        if (ROOT / folder).exists():
            for path in sources(folder, *limits):
                lines = len(path.read_text().splitlines())
                limit = 500 if (folder, path.suffix) == ("tests", ".py") else limits[path.suffix]
                if lines > limit:
                    too_long.append(f"{name(path)}: {lines} lines, at most {limit}")
    assert not too_long, "\n".join(too_long)


def test_showo_ext_imports_without_the_native_module():
    """A broken installation can be looked into: everything imports, and calling says what is wrong."""
    script = """
import sys
sys.modules["showo_ext._C"] = None
import torch, showo_ext, showo_ext.reference, showo_ext.testing
info = showo_ext.build_info()
assert not info["native"] and info["native_error"], info
showo_ext.reference.lfq_encode(torch.zeros(1, 2, 3, 4))
try:
    showo_ext.lfq_encode(torch.zeros(1, 2, 3, 4))
except ImportError as error:
    assert "no working native module" in str(error) and "make dev" in str(error), error
else:
    raise SystemExit("expected an ImportError")
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


# ---------------------------------------------------------------- the rooms of an operator


def test_every_operator_is_listed():
    listed = {rooms.file for rooms in OPERATORS.values()} | {rooms.family for rooms in OPERATORS.values()}
    found = [*(ROOT / "showo_ext" / "ops").glob("[!_]*.py"), *(ROOT / "csrc").glob("*/params.h")]
    unknown = [name(path) for path in found if not {path.stem, path.parent.name} & listed]
    assert not unknown, f"OPERATORS of showo_ext/ops/__init__.py does not list the operators of {unknown}"


HOMES = {op: (ROOT, rooms) for op, rooms in OPERATORS.items()}
HOMES["scale_rows"] = (TEMPLATE, Rooms("scale_rows", "scale_rows", "scale_rows_forward"))


@pytest.mark.parametrize("op", HOMES)
def test_every_operator_has_all_its_rooms(op):
    home, rooms = HOMES[op]
    family, file = rooms.family, rooms.file
    test = f"tests/{family}/test_{file}.py"
    kinds = ["params.h", "cpu*.cpp", *(["*.cu"] if rooms.cuda == "native" else [])]
    files = [f"csrc/{family}/{kind}" for kind in kinds]
    files += [f"csrc/bindings/bind_{family}.cpp", f"showo_ext/ops/{file}.py", f"showo_ext/reference/{file}.py"]
    files += [test, f"benchmarks/bench_{family}.py"]
    missing = [file for file in files if not list(home.glob(file))]
    assert not missing, f"{op} lacks {missing}"
    text = (home / test).read_text()
    assert f"def example_{op}(" in text, f"{op} lacks example_{op} in {test}; see tests/examples.py"


def test_every_public_function_has_an_example():
    missing = set(showo_ext.ops.__all__) - set(examples())
    assert not missing, f"no example_<function>, see tests/examples.py: {missing}"


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_is_public_registered_and_native(op):
    for package in (showo_ext.ops, showo_ext.reference):
        assert op in package.__all__, f"{name(Path(package.__file__))} does not name {op}"
    public, reference = getattr(showo_ext, op), getattr(showo_ext.reference, op)
    assert list(inspect.signature(public).parameters) == list(inspect.signature(reference).parameters)
    assert public.__doc__
    registered = [schema for schema in (op, f"{op}_forward") if hasattr(torch.ops.showo_ext, schema)]
    assert registered, f"torch.ops.showo_ext.{op} is not registered"
    assert showo_ext.build_info()["operators"][op]["cpu"] == "native"

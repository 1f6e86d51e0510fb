"""The kernel package is built, loaded as its users load it, and passes the tests of its operators where no other
showo_ext is.

Few tests an operator, chosen so that every launcher, gradient, fake implementation and compiled call is met. All tests
of operators pass: in a folder as `elsewhere` makes, `python -I tests/kernel_package/fresh.py <package> tests/rope_qkv`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import showo_ext
from showo_ext.testing import randn
from tools.kernel_package import build

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PAGE = (ROOT / "docs" / "kernel-package.md").read_text(encoding="utf-8")
README = Path(build.__file__).with_name("README.md").read_text(encoding="utf-8")
VARIANT = f"torch-stable-abi{build.STABLE_ABI}-cpu-{os.uname().machine}-linux"

pytestmark = pytest.mark.slow
kernels = pytest.importorskip("kernels")
if not (build.BUILD / "CMakeCache.txt").exists():
    pytest.skip("there is no in-tree build; `make dev` makes it", allow_module_level=True)
from kernels._rust import Digest, Metadata  # noqa: E402

TESTS = [
    "omni_attention/test_omni_attention.py::test_formats[t2i]",
    "omni_attention/test_omni_attention.py::test_formats[t2i image rows against a cache]",
    "omni_attention/test_operator.py::test_gradient_of_lse_alone",
    "omni_attention/test_operator.py::test_opcheck[torch.float32]",
    "omni_attention/test_operator.py::test_compiles",
    "omni_attention/test_softcap.py::test_opcheck",
    "rope_qkv/test_rope_qkv.py::test_values_and_gradients",
    "rope_qkv/test_rope_qkv.py::test_into_cache",
    "rope_qkv/test_rope_qkv.py::test_slots_out_of_range",
    "rope_qkv/test_operator.py::test_compiles",
    "codebook/test_lfq.py::test_follows_the_definition",
    "codebook/test_lfq.py::test_opcheck",
    "codebook/test_lfq.py::test_compiles",
    "codebook/test_vq.py::test_finds_the_nearest_entry",
    "codebook/test_vq.py::test_lookup_and_its_gradient",
    "codebook/test_vq.py::test_encode_opcheck",
    "codebook/test_vq.py::test_lookup_opcheck",
    "codebook/test_vq.py::test_compiles",
    "codebook/test_vq.py::test_bad_input_is_named",
    "resample/test_sample_tokens.py::test_exact_on_noise",
    "resample/test_remask.py::test_exact_on_noise",
    "resample/test_remask.py::test_opcheck_and_compile",
    "resample/test_resample.py::test_is_sample_then_remask",
    "resample/test_resample.py::test_opcheck_and_compile",
    "resample/test_corrupt_tokens.py::test_exact_on_noise",
    "resample/test_corrupt_tokens.py::test_opcheck_and_compile",
    "resample/test_philox.py",
    "skinny_linear/test_skinny_linear.py::test_values",
    "skinny_linear/test_skinny_linear.py::test_opcheck_and_compile",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's command builds, but for the place."""
    assert "\nmake kernel-package\n" in PAGE
    make = ["make", "-n", "--no-print-directory", "kernel-package", f"PYTHON={sys.executable}"]
    command = subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split()
    assert command[1:3] == ["-m", "tools.kernel_package.build"]
    output = tmp_path_factory.mktemp("package") / "build" / "kernel_package"
    done = subprocess.run([*command, "--output", output], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{output / 'build' / VARIANT}\n"
    return output


@pytest.fixture(scope="module")
def package(folder: Path) -> ModuleType:
    return kernels.get_local_kernel(folder)


def elsewhere(folder: Path) -> None:
    """Puts into `folder` the tests and nothing that they test."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def test_operators_pass_their_tests_in_a_fresh_interpreter(folder: Path, tmp_path: Path) -> None:
    elsewhere(tmp_path)
    tests = [f"tests/{test}" for test in TESTS]
    command = [sys.executable, "-I", "tests/kernel_package/fresh.py", folder, "-q", *tests]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= len(TESTS)


def test_it_and_showo_ext_live_in_one_process(package: ModuleType) -> None:
    assert package.__name__ == package._operator.NAMESPACE != "showo_ext"
    assert not [name for name in sys.modules if name.startswith(f"{package.__name__}.showo_ext")]
    results = []
    for each in (package, showo_ext):
        q, k, v = (randn(2, 4, 50, 64, seed=seed).requires_grad_() for seed in range(3))
        out = each.omni_attention(q, k, v, each.OmniMask.causal(2, 50), deterministic=True)
        latents = randn(2, 13, 4, 4, seed=3)
        codes = getattr(torch.ops, each.__name__).lfq_encode.default
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v)), each.lfq_encode(latents), codes])
    *ours, our_operator = results[0]
    *theirs, their_operator = results[1]
    assert our_operator is not their_operator
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(TypeError, match="mask"):
        showo_ext.omni_attention(q, k, v, package.OmniMask.causal(2, 50))


def test_its_own_instruction_set(package: ModuleType) -> None:
    from_module = showo_ext.build_info()["cpu_isa"]
    with importlib.import_module(f"{package.__name__}.testing").use_isa("baseline"):
        assert package.build_info()["cpu_isa"] == "baseline"
        assert showo_ext.build_info()["cpu_isa"] == from_module
    with pytest.raises(ValueError, match="unknown instruction set 'mmx'"):
        package._C.set_cpu_isa("mmx")


def test_its_launchers_are_those_of_the_module_and_refuse_alike(package: ModuleType) -> None:
    module = showo_ext._native.native()
    cpu = {name: kinds for name, kinds in module.signatures.items() if name.endswith("_cpu")}
    assert package._C.signatures == cpu
    assert package._C.vq_encode_workspace_size(num_codes=70, dim=9) == module.vq_encode_workspace_size(
        num_codes=70, dim=9
    )
    entries, ids, out = randn(5, 3), torch.tensor([4, 5]), torch.zeros(2, 3)
    with pytest.raises(TypeError, match="lacks, or has no, argument"):
        package._C.lfq_encode_cpu({"z": entries})
    errors = []
    for each in (package, showo_ext):
        with pytest.raises((ValueError, IndexError)) as caught:
            each.codebook_lookup(ids, entries)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
    assert not out.any()


def test_metadata(folder: Path, package: ModuleType) -> None:
    variant = folder / "build" / VARIANT
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["id"] == package.__name__
    assert [path.name for path in variant.glob("*.so")] == [f"{package.__name__}.abi3.so"]
    read = Metadata.from_bytes((variant / "metadata.json").read_bytes())  # as the hub's loader does
    read.digest.validate(Digest.hash_variant(read.digest.algorithm, variant))
    assert build.cuda_archs("80-real,90a-real,80-virtual") == ["8.0+PTX", "9.0a"]


def test_the_library_asks_for_no_more_than_the_stable_abi(folder: Path) -> None:
    """Undefined C++ symbols of torch would tie the library to one version of it."""
    (library,) = (folder / "build" / VARIANT).glob("*.so")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True
    ).stdout
    assert "aoti_torch_" in symbols
    assert not re.findall(r"_ZNK?(?:3c10|2at|5torch)\w*", symbols)


@pytest.mark.parametrize("text", [PAGE, README], ids=["page", "readme"])
def test_python_of_the_documents(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parents[1])
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    from_hub = r"get_kernel\(\"your-name/.*\)"
    block = re.sub(from_hub, 'get_local_kernel(Path("build/kernel_package"))', block)
    block = block.replace("import get_kernel\n", "import get_local_kernel\nfrom pathlib import Path\n")
    exec(compile(block, "document", "exec"), {})


@pytest.mark.parametrize("text", ["import showo_ext", "def f():\n    import torch, showo_ext.ops as o\n"])
def test_imports_without_a_relative_form_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"m\.py, line [12]: has import .*showo_ext"):
        build.with_relative_imports(text, 1, Path("m.py"))


def test_imports_become_relative() -> None:
    text = '"""\nfrom showo_ext import f\n"""\nfrom showo_ext import f\nif f:\n    from showo_ext.ops.a import (g)\n'
    expected = '"""\nfrom showo_ext import f\n"""\nfrom .. import f\nif f:\n    from ..ops.a import (g)\n'
    assert build.with_relative_imports(text, 2, Path("m.py")) == expected

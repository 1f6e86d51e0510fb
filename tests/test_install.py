"""Builds the sdist and, from it, a CPU-only wheel; looks into both; uses the wheel from somewhere else."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def tracked(*folders: str) -> list[str]:
    listing = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0 or not listing.stdout:
        pytest.skip("not a git checkout")
    return listing.stdout.splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path, str]:
    """(sdist, wheel built from it, what the build printed)."""
    pytest.importorskip("build", reason="needs the package `build`")
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for file in tracked():
        if (ROOT / file).is_file():
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, source / file)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(source)]
    environment = {**os.environ, "SHOWO_EXT_CUDA": "0", "SHOWO_EXT_BUILD_TYPE": "Debug"}  # compiled sooner
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=dist
    )
    assert result.returncode == 0, result.stdout[-4000:]
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    return sdist, wheel, result.stdout


def test_sdist_holds_all_sources(built):
    with tarfile.open(built[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = set(tracked("csrc", "cmake", "showo_ext", "python")) | {"CMakeLists.txt", "LICENSE", "setup.py"}
    assert not needed - names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_wheel_holds_every_module_and_data_file(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "showo = showo.cli:main" in archive.read(entry_points).decode()
    needed = {name.removeprefix("python/") for name in tracked("showo_ext", "python/showo")}
    assert not needed - names
    assert [name for name in names if name.startswith("showo_ext/_C.") and name.endswith(".so")]
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"showo", "showo_ext"}


def test_cpu_only_build_says_so_once(built):
    assert built[2].count("CPU-only build") == 1


def test_wheel_works_elsewhere(built, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(site)
    script = """
import sys, torch, showo, showo_ext
assert showo_ext.__file__.startswith(sys.argv[1]) and showo.__file__.startswith(sys.argv[1])
info = showo_ext.build_info()
assert info["native"] and not info["has_cuda"], info
assert showo_ext.lfq_encode(torch.ones(1, 13, 2, 2)).tolist() == [[8191] * 4]
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", script, str(site)], check=True, cwd=tmp_path, env=environment)


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ("-DSHOWO_EXT_CUDA=1", "no working nvcc was found"),
        ("-DSHOWO_EXT_CUDA=maybe", "SHOWO_EXT_CUDA is 'maybe', expected auto, 1 or 0"),
        ("-DSHOWO_EXT_CUDA_ARCHS=ampere", "SHOWO_EXT_CUDA_ARCHS holds 'ampere'"),
    ],
)
def test_wrong_build_knobs_stop_the_build(knob, message, tmp_path):
    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if cmake is None:
        pytest.skip("needs cmake")
    environment = {**os.environ, "CUDACXX": "/nonexistent/nvcc"}
    command = [cmake, f"-S{ROOT}", f"-B{tmp_path}", f"-DPython_EXECUTABLE={sys.executable}", knob]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert message in " ".join(result.stderr.split())

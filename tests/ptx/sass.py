"""What ptxas made of the kernels: registers, spills, and the instruction mix of the tensor-core loops.

    for kernel in resources(path): ...               # {"omni_forward_kernel...": Resources(registers=..., ...)}
    inner_loop(functions(path)["..."])               # Loop(hmma=256, others=801, mix=Counter(...))

`path` is an object file, module or cubin with sm_80 code. It needs `cuobjdump` and `nvdisasm`: those of a CUDA toolkit
on PATH, or of the pip packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import collections
import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")
BRANCH = re.compile(r"BRA(?:\.\w+)*\s+(?:!?U?P\w+,\s*)?`?\(?(0x[0-9a-f]+)")
PREDICATE = re.compile(r"^@!?U?P\w+\s+")
RESOURCES = re.compile(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")

ESSENTIAL = {"HMMA", "LDGSTS"}

# Where `make dev` leaves the object files of the extension's kernels, laid out as csrc is.
OBJECTS = Path(__file__).parents[2] / "build" / "dev" / "CMakeFiles" / "showo_cuda.dir" / "csrc"

Code = list[tuple[int, str]]  # address, text


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int
    shared: int
    local: int


@dataclass(frozen=True)
class Loop:
    """The body of a loop: tensor-core instructions, the others of an iteration, how often each opcode occurs in these.

    An iteration leaves out what a forward branch can jump over without missing an HMMA or an asynchronous copy: rare
    work such as rescaling.
    `all_others` counts that too.
    """

    first: int
    last: int
    hmma: int
    others: int
    all_others: int
    mix: collections.Counter[str]

    @property
    def ratio(self) -> float:
        return self.others / self.hmma


@functools.cache
def tool(name: str) -> str | None:
    """The path of cuobjdump or nvdisasm, or None."""
    found = shutil.which(name)
    if found:
        return found
    for folder in sys.path:
        for path in sorted(Path(folder).glob(f"nvidia/*/bin/{name}")):
            return str(path)
    return None


def available() -> bool:
    """Whether there are objects of the extension, and the tools to look into them."""
    return tool("cuobjdump") is not None and tool("nvdisasm") is not None and OBJECTS.exists()


UNAVAILABLE = "needs `make dev` with nvcc, cuobjdump and nvdisasm"


def _dump(path: Path, *arguments: str) -> str:
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if cuobjdump is None or nvdisasm is None:
        raise FileNotFoundError("cuobjdump and nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    path_variable = os.pathsep.join((str(Path(nvdisasm).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "PATH": path_variable}
    command = [cuobjdump, *arguments, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def resources(path: Path) -> dict[str, Resources]:
    """Registers, stack, static shared memory and local memory in bytes of every kernel, by mangled name."""
    text = _dump(path, "-arch", "sm_80", "--dump-resource-usage")
    return {name: Resources(*map(int, numbers)) for name, *numbers in RESOURCES.findall(text)}


def functions(path: Path, part: str = "") -> dict[str, Code]:
    """The instructions of every kernel whose mangled name contains `part`."""
    return {name: code for name, code in _functions(path).items() if part in name}


@functools.lru_cache(maxsize=4)  # tests ask for one kernel of a file after the other
def _functions(path: Path) -> dict[str, Code]:
    text = _dump(path, "-arch", "sm_80", "-sass")
    found = {}
    for function in re.split(r"\n\s*Function : ", text)[1:]:
        name, body = function.split("\n", 1)
        found[name.strip()] = [(int(a, 16), t.strip()) for a, t in INSTRUCTION.findall(body)]
    return found


def opcode(text: str) -> str:
    return PREDICATE.sub("", text).split()[0].split(".")[0]


def loops(code: Code) -> list[Loop]:
    """Every backward branch with its body."""
    index = {address: i for i, (address, _) in enumerate(code)}
    targets = [index.get(int(b[1], 16), -1) if (b := BRANCH.search(text)) else -1 for _, text in code]
    opcodes = [opcode(text) for _, text in code]
    found = []
    for last, first in enumerate(targets):
        if not 0 <= first < last:
            continue
        path, at = [], first
        while at <= last:
            path.append(opcodes[at])
            target = targets[at]
            over = (
                at < target <= last and PREDICATE.match(code[at][1]) and not ESSENTIAL.intersection(opcodes[at:target])
            )
            at = target if over else at + 1
        mix, body = collections.Counter(path), opcodes[first : last + 1]
        hmma = body.count("HMMA")
        found.append(Loop(first, last, hmma, len(path) - mix["HMMA"], len(body) - hmma, mix))
    return found


def inner_loop(code: Code) -> Loop:
    """The loop that is densest in tensor-core instructions."""
    return max((loop for loop in loops(code) if loop.hmma), key=lambda loop: loop.hmma / (loop.last - loop.first))

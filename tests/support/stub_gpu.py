"""Triton without a GPU: kernels are specialised and compiled for a GPU as a launch would have it, and the launch itself is left
out. So what users call can be compiled, looked at and timed on any machine; tensors are on the CPU.

TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import functools
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class StubDriver:
    """Triton's driver of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self
        # what load_binary returns: module, function, registers, spills, and after Triton 3.2 the most threads
        self.loaded = (self, 0, 0, 0) + (1024,) * ("n_max_threads" in CompiledKernel._init_handles.__code__.co_names)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 101376}

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return _launch

    def load_binary(self, *_: Any) -> tuple[Any, ...]:
        return self.loaded

    def unload_module(self, module: Any) -> None: ...


launches: list[tuple[int, int, int]] = []
"""The grids of what would have been launched, latest last."""


def _launch(x: int, y: int, z: int, *_: Any) -> None:
    launches.append((x, y, z))


def install(capability: int = 90) -> None:
    """From here on every launch is compiled for this compute capability, 90 for 9.0, and left out."""
    triton.runtime.driver.set_active(StubDriver(capability))


def launch_cost(call: Callable[[], Any], calls: int = 20, rounds: int = 300) -> tuple[float, float]:
    """Microseconds of this machine's time per call, the least and the median of rounds; the launch itself is left out."""
    for _ in range(calls):  # compiles, and warms caches
        call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - begin) / calls * 1e6)
        launches.clear()
    return min(times), statistics.median(times)


class Compiled(NamedTuple):
    """What became of a kernel."""

    registers: int
    local: int
    """Bytes of stack and local memory per thread, where spills lie."""
    loads: dict[int, int]
    """Global loads in PTX by their width in bytes."""
    stores: dict[int, int]
    cubin: bytes

    @property
    def lines(self) -> int:
        """Instructions in SASS."""
        return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", _cuobjdump("-sass", self.cubin), re.MULTILINE))


def compiled(kernel: Any) -> list[Compiled]:
    """Every variant of a kernel that launches have had compiled so far, the oldest first."""
    caches = kernel.device_caches[0][0] if hasattr(kernel, "device_caches") else kernel.cache[0]  # as in Triton 3.2
    return [_look(made) for made in caches.values()]


def _look(made: CompiledKernel) -> Compiled:
    usage = _cuobjdump("-res-usage", made.asm["cubin"])
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    ptx = made.asm["ptx"]
    return Compiled(
        registers=used["REG"],
        local=used["STACK"] + used["LOCAL"] + ptx.count(".local"),
        loads=_widths("ld", ptx),
        stores=_widths("st", ptx),
        cubin=made.asm["cubin"],
    )


def _widths(what: str, ptx: str) -> dict[int, int]:
    """How many global loads or stores there are of each width: ld.global.L1::evict_first.v4.b32 is one of 16 bytes."""
    counts: dict[int, int] = {}
    for many, bits in re.findall(rf"\b{what}\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx):
        width = int(many or 1) * int(bits) // 8
        counts[width] = counts.get(width, 0) + 1
    return counts


@functools.lru_cache
def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout

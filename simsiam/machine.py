"""What a result was computed on."""

import contextlib
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

# Flags of /proc/cpuinfo that decide which kernels torch picks, and so the last digits and the speed.
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def machine() -> dict[str, Any]:
    """The device's name, the threads, and the versions of Python and of the imported libraries that numbers depend on."""
    libraries = ("numpy", "torch", "sklearn", "shap")
    versions = {name: str(sys.modules[name].__version__) for name in libraries if name in sys.modules}
    found: dict[str, Any] = {"device": device_name()}
    if torch := sys.modules.get("torch"):
        found["threads"] = torch.get_num_threads()
    return found | {"versions": {"python": platform.python_version()} | versions}


def device_name() -> str:
    """The GPU's name where this process has used one, else the processor's, with what tells it from others of that name."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}, {cores} cores"


def processor() -> str:
    """The processor's name, family, model and vector units: "AMD EPYC (family 25 model 17: avx2 avx512f avx512_bf16)"."""
    fields = _cpuinfo()
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = f"family {fields['cpu family']} model {fields['model']}: " if {"cpu family", "model"} <= set(fields) else ""
    return f"{name} ({numbers}{vector_units()})"


def vector_units() -> str:
    """Those of the processor's vector units that torch has kernels for, in a fixed order; its architecture where unknown."""
    flags = _cpuinfo().get("flags", _cpuinfo().get("Features", "")).split()
    return " ".join(flag for flag in TELLING_FLAGS if flag in flags) or platform.machine()


def free_memory() -> int:
    """Bytes that this process can have: what is free, or a container's limit where that is less."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else sys.maxsize
    with contextlib.suppress(OSError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # none, or "max"
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return free


def forget_peak_memory() -> None:
    """Let `peak_memory` begin anew, on a GPU and on Linux; elsewhere a process's peak is that of all that it has done."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # no Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """The most memory in MiB that this process has had: of the GPU that it uses, else of the machine's."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo, where there is such a file."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else ""
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}

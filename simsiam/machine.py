"""What a result was computed on."""

import os
import platform
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The device's name and the versions of Python and of the imported libraries that numbers depend on."""
    libraries = ("torch", "sklearn", "shap")
    versions = {name: str(sys.modules[name].__version__) for name in libraries if name in sys.modules}
    return {"device": _device_name(), "versions": {"python": platform.python_version()} | versions}


def _device_name() -> str:
    """The GPU's name where this process has used one, else the CPU's with its number of cores."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"

"""Two processors that round or run differently do not look the same, and nothing else is said of a machine."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from simsiam import machine
from simsiam.machine import processor, vector_units

ROOT = Path(__file__).parent.parent
LIMIT = 120  # seconds for a process

ZEN3 = {"model name": "AMD EPYC", "cpu family": "25", "model": "1", "flags": "fpu sse4_2 avx avx2 sha_ni"}
ZEN4 = ZEN3 | {"model": "17", "flags": "fpu avx512_bf16 sse4_2 avx avx2 avx512f avx512vl sha_ni"}
GRAVITON = {"CPU implementer": "0x41", "Features": "fp asimd evtstrm sve bf16 i8mm"}


def given(monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: fields)


def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, ZEN3)
    assert processor() == "AMD EPYC (family 25 model 1: avx2)" and vector_units() == "avx2"
    given(monkeypatch, ZEN4)
    assert processor() == "AMD EPYC (family 25 model 17: avx2 avx512f avx512_bf16)"
    assert vector_units() == "avx2 avx512f avx512_bf16"  # in our order, not the kernel's


def test_an_arm_has_units_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, GRAVITON)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor() == "aarch64 (asimd sve bf16)"


def test_where_nothing_is_known_the_architecture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no /proc/cpuinfo."""
    given(monkeypatch, {})
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert (processor(), vector_units()) == ("arm (arm64)", "arm64")
    real = Path.exists
    monkeypatch.undo()
    monkeypatch.setattr(Path, "exists", lambda path: path != Path("/proc/cpuinfo") and real(path))
    assert machine._cpuinfo() == {}


def test_the_first_processor_of_the_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nmodel name\t: A: b\nmodel\t\t: 17\nflags\t\t: avx2 sse\n\nprocessor\t: 1\nmodel\t: 3\n"
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert machine._cpuinfo() == {"processor": "0", "model name": "A: b", "model": "17", "flags": "avx2 sse"}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_the_units_are_those_that_torch_sees_here() -> None:
    names = {"avx2": "avx2", "avx512f": "avx512_f", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16"}
    capabilities = torch.cpu.get_capabilities()
    if platform.machine() != "x86_64" or not set(names.values()) <= set(capabilities):
        pytest.skip("torch has other names")
    units = set(vector_units().split()) & set(names)
    assert units == {unit for unit, name in names.items() if capabilities[name]}


def test_a_record_names_device_threads_and_versions() -> None:
    found = machine.machine()
    known = {"numpy": version("numpy"), "torch": str(torch.__version__)}  # with its build: +cpu or +cu130
    known |= {"sklearn": version("scikit-learn"), "shap": version("shap")}
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"] == {
        "python": platform.python_version(),
        **{name: known_version for name, known_version in known.items() if name in sys.modules},
    }
    assert found["device"].startswith(processor()) and found["device"].endswith(" cores")
    assert "numpy" in found["versions"] and "torch" in found["versions"]


def test_only_what_is_imported_counts_and_nothing_is_imported_for_it() -> None:
    script = "import json, sys; from simsiam.machine import machine; print(json.dumps([machine(), 'torch' in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    found, torch_there = json.loads(result.stdout)
    assert set(found) == {"device", "versions"} and set(found["versions"]) == {"python"} and not torch_there


def test_free_memory_is_what_a_process_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert total / 100 < machine.free_memory() <= total
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    5000 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}
    monkeypatch.setattr(Path, "read_text", lambda path: files[str(path)])
    assert machine.free_memory() == 5_120_000
    files["/sys/fs/cgroup/memory.max"] = "1000000\n"
    assert machine.free_memory() == 1_000_000


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="here a process's peak cannot be forgotten")
def test_the_peak_of_memory_is_that_since_it_was_forgotten() -> None:
    machine.forget_peak_memory()
    before = machine.peak_memory()
    assert 20 < before < 20_000  # MiB
    large = np.ones(200 * 2**20, np.uint8)
    with_it = machine.peak_memory()
    assert 190 < with_it - before < 260
    del large
    assert machine.peak_memory() >= with_it
    machine.forget_peak_memory()
    assert machine.peak_memory() < before + 60

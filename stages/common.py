"""What every stage does: read params.yaml, run one function, write its metrics, and speak plainly when it cannot."""

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simsiam.errors import UserError
from simsiam.files import write_json
from simsiam.params import Params, load

Metrics = dict[str, Any]
Stage = Callable[[Params, Path], Metrics | None]


def main(stage: Stage) -> None:
    """Run a stage in the current folder. A UserError ends it in one line on stderr and a non-zero exit status."""
    name = stage.__name__
    try:
        params = load(Path("params.yaml"))
        started = time.monotonic()
        metrics = stage(params, Path())
        if metrics is not None:
            # DVC's tables show numbers and texts but no lists: so the record of the run is a list of one.
            metrics["run"] = [run_record(params, time.monotonic() - started)]
            write_json(Path(f"reports/metrics/{name}.json"), {name: metrics})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(130)


def run_record(params: Params, seconds: float) -> Metrics:
    """What ran, on what, for how long."""
    return {
        "recipe": params.recipe,
        "latent_dim": params.latent_dim,
        "stop_gradient": params.stop_gradient,
        "seed": params.seed,
        "seconds": round(seconds, 1),
        "device": device_name(),
        "versions": {"python": platform.python_version()}
        | {name: sys.modules[name].__version__ for name in ("torch", "sklearn", "shap") if name in sys.modules},
    }


def device_name() -> str:
    """The GPU's name where this process uses one, else the CPU's with its number of cores."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"

"""What the stages have written, read back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2

from simsiam.errors import UserError
from simsiam.files import read_json
from stages.common import Metrics

STAGES = ("download", "look", "pretrain", "embed", "linear_eval", "finetune", "project", "explain")


def read_metrics(root: Path, stages: Sequence[str] = STAGES) -> Metrics:
    """The stages' metrics, by the stage's name."""
    metrics: Metrics = {}
    for stage in stages:
        path = root / f"reports/metrics/{stage}.json"
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get(stage), dict):
            raise UserError(f"{path} does not hold the metrics of stage {stage}: delete it and run `dvc repro`")
        metrics[stage] = Numbers(content[stage], path, stage)
    return metrics


class Numbers(dict[str, Any]):
    """A stage's metrics, or a part of them. Raises UserError, naming the file, for a key that it has not."""

    def __init__(self, content: dict[str, Any], path: Path, place: str) -> None:
        self._path, self._place = path, place
        super().__init__({key: self._part(value, f"{place}.{key}") for key, value in content.items()})

    def _part(self, value: Any, place: str) -> Any:
        if isinstance(value, list):
            return [self._part(each, place) for each in value]
        return Numbers(value, self._path, place) if isinstance(value, dict) else value

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self._path} has no {self._place}.{key}: delete it and run `dvc repro`")


@contextmanager
def of_another_shape(root: Path) -> Iterator[None]:
    """Tells of numbers that are of another type, or out of all range. Which stage's they are cannot always be told."""
    try:
        yield
    except (jinja2.UndefinedError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        words = f"{root / 'reports/metrics'}: one of these is not as its stage writes it ({type(error).__name__}: {error})"
        raise UserError(f"{words}: delete those that were edited and run `dvc repro`") from error

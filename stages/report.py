"""The results on one page: python -m stages.report"""

import io
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from simsiam.files import read_json, write_text
from simsiam.plots import accuracies_figure, curves_figure, draw
from simsiam.report import Study, accuracy_rows, render
from simsiam.settings import Params
from stages.common import Metrics, main

STAGES = ("download", "pretrain", "embed", "linear_eval", "finetune", "project", "explain")


def report(params: Params, root: Path) -> None:
    """Write reports/index.html with all that the other stages found, the last two figures, and the settings that ran."""
    figures, curves = root / "reports/figures", root / "reports/curves"
    metrics = read_metrics(root)
    draw(figures / "curves.png", curves_figure, pd.read_csv(curves / "pretrain.csv"), pd.read_csv(curves / "finetune.csv"))
    draw(figures / "accuracies.png", accuracies_figure, accuracy_rows(metrics), *chance_and_images(metrics))
    write_text(root / "reports/settings.yaml", settings_that_ran(params))
    write_page(params, root)


def write_page(params: Params, root: Path) -> None:
    """Write reports/index.html from what lies in reports/.

    The study is on it where there is one in reports/study/. That is no dependency in dvc.yaml, because then every
    `dvc repro` would run the whole grid; `dvc repro ablation/dvc.yaml` makes the page anew itself.
    """
    metrics = read_metrics(root)
    names = ("accuracies", "confusion", "curves", "latent_plane", "maps", "neighbours", "shap", "spectrum", "variance")
    page = render(
        params.report.title,
        metrics,
        {name: (root / f"reports/figures/{name}.png").read_bytes() for name in names},
        (root / "reports/settings.yaml").read_text(),
        [read_study(path.parent) for path in sorted((root / "reports/study").glob("*/study.json"))],
    )
    write_text(root / "reports/index.html", page)


def read_metrics(root: Path) -> Metrics:
    """Every stage's metrics, by the stage's name."""
    metrics: Metrics = {}
    for stage in STAGES:
        metrics |= read_json(root / f"reports/metrics/{stage}.json")
    return metrics


def read_study(folder: Path) -> Study:
    """What ablation/study.py wrote about one recipe."""
    return Study(
        **read_json(folder / "study.json"),
        tables={path.stem: path.read_text() for path in sorted(folder.glob("*.html"))},
        figures={path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))},
    )


def chance_and_images(metrics: Metrics) -> tuple[float, int]:
    """The top-1 of a guess, and the number of test images."""
    return 1 / metrics["download"]["classes"], metrics["download"]["test"]


def settings_that_ran(params: Params) -> str:
    """The parameters without the recipes that were not used, as YAML."""
    content = params.in_use()
    yaml, buffer = YAML(), io.StringIO()
    yaml.default_flow_style = None
    yaml.dump(content, buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    main(report)

"""The results on one page: python -m stages.report"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from ruamel.yaml import YAML

from simsiam.errors import UserError
from simsiam.files import read_json, write_text
from simsiam.plots import accuracies_figure, curves_figure, draw
from simsiam.report import Study, accuracy_rows, render
from simsiam.settings import Params
from stages.common import Metrics, main
from stages.numbers import of_another_shape, read_metrics

FIGURES = (
    "accuracies",
    "confusion",
    "copies",
    "curves",
    "latent_plane",
    "maps",
    "neighbours",
    "shap",
    "spectrum",
    "variance",
    "views",
)
RELEASED = Path(__file__).parents[1] / "released/card.json"  # of the encoder that comes with the repository
CLAIM = ("claim", "where", "rule", "finding", "control", "verdict", "reason")


def report(params: Params, root: Path) -> None:
    """Write reports/index.html with all that the other stages found, the last two figures, and the settings that ran."""
    figures, curves = root / "reports/figures", root / "reports/curves"
    metrics = read_metrics(root)
    starts = ("encoder", "scratch") if metrics["download"]["classes"] else ()
    tuning = {start: read_curve(curves / f"finetune_from_{start}.csv") for start in starts}
    draw(figures / "curves.png", curves_figure, read_curve(curves / "pretrain.csv"), tuning)
    with of_another_shape(root):
        draw(figures / "accuracies.png", accuracies_figure, accuracy_rows(metrics), *chance_and_images(metrics))
    settings = settings_that_ran(params, metrics)
    write_text(root / "reports/settings.yaml", settings)
    write_page(params, root, settings)


def write_page(params: Params, root: Path, settings: str) -> None:
    """Write reports/index.html from what lies in reports/.

    The studies in reports/study/ are on it, in the order of params.yaml; one that is damaged is left out, with a line on
    stderr.
    """
    studies, order = [], list(params.ablation.studies)
    found = sorted((root / "reports/study").glob("*/study.json"))
    for path in sorted(found, key=lambda path: order.index(path.parent.name) if path.parent.name in order else len(order)):
        try:
            studies.append(read_study(path))
        except UserError as error:
            print(f"report: without study {path.parent.name}: {error}", file=sys.stderr)
    metrics, pictures = read_metrics(root), {name: read_picture(root / f"reports/figures/{name}.png") for name in FIGURES}
    card = read_json(RELEASED) if RELEASED.exists() else None
    same = card and all(card["images"][key] == metrics["download"][key] for key in ("name", "train", "test", "size"))
    with of_another_shape(root):
        page = render(params.report.title, metrics, pictures, settings, studies, card if same else None)
    write_text(root / "reports/index.html", page)


def read_curve(path: Path) -> pd.DataFrame:
    """A curve. Raises UserError where it is missing or none."""
    try:
        frame = pd.read_csv(path)
        return frame.assign(epoch=frame["epoch"].astype(float))
    except (OSError, ValueError, KeyError) as error:  # pandas' own are ValueErrors
        raise UserError(f"{path} is no curve ({' '.join(str(error).split())}): delete it and run `dvc repro`") from None


def read_picture(path: Path, how: str = "delete it and run `dvc repro`") -> bytes:
    """A PNG. Raises UserError where it is missing or cut short; `how` says what to do then."""
    try:
        content = path.read_bytes()
        Image.open(io.BytesIO(content)).load()
    except (OSError, SyntaxError, ValueError):  # Pillow has all of these for a damaged picture
        raise UserError(f"{path} is no readable picture: {how}") from None
    return content


def read_study(path: Path) -> Study:
    """What ablation/study.py wrote beside a study.json. Raises UserError where any of it is missing or damaged."""
    how = "`python -m ablation.study` makes it anew"
    content = read_json(path, how=how)
    try:
        tables = [(words, (path.parent / f"{name}.html").read_text()) for name, words in content["tables"].items()]
        pictures = [(words, read_picture(path.parent / f"{name}.png", how)) for name, words in content["figures"].items()]
        claims = [{key: str(claim.get(key, "")) for key in CLAIM} for claim in content["claims"]]
        lists = {key: list(map(str, content[key])) for key in ("stale", "missing")}
        texts = {key: str(content.get(key, "")) for key in ("note", "about")}
        rest: dict[str, Any] = texts | lists | {"commands": dict(content["commands"])}
        return Study(str(content["name"]), tables, pictures, claims, **rest)
    except OSError as error:
        raise UserError(f"{path.parent}: {error}: {how}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is not a study's ({type(error).__name__}: {error}): {how}") from None


def chance_and_images(metrics: Metrics) -> tuple[float, int]:
    """The top-1 of the most frequent class, and the number of test images."""
    return metrics["download"]["chance"], metrics["download"]["test"]


def settings_that_ran(params: Params, metrics: Metrics) -> str:
    """The parameters without the recipes that were not used, as each stage fitted them to the images, as YAML."""
    content = params.in_use()
    for stage, ran in {stage: found["settings"][0] for stage, found in metrics.items() if "settings" in found}.items():
        ran = json.loads(json.dumps(ran))  # plain again
        if stage == "pretrain":
            content["recipes"][params.recipe] |= ran
        elif stage == "finetune":
            content["recipes"][params.recipe]["finetune"] = ran
        else:
            content[stage] = ran
    yaml, buffer = YAML(), io.StringIO()
    yaml.default_flow_style = None
    yaml.dump(content, buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    main(report)

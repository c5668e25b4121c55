"""Numbers and figures -> one self-contained page. Knows no torch."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

HERE = Path(__file__).parent
Metrics = dict[str, Any]
SPACES = ("backbone", "latent", "random_backbone", "random_latent")
WEBP_PIXELS = 16_383  # the largest side that the format has


@dataclass(frozen=True)
class Study:
    """What a study of the ablation found."""

    name: str
    tables: list[tuple[str, str]]  # caption, HTML
    figures: list[tuple[str, bytes]]  # caption, PNG
    claims: list[dict[str, str]]  # with claim, where, rule, finding, control, verdict and reason
    commands: dict[str, str]
    stale: list[str]  # points that were made otherwise than they would be now
    missing: list[str]  # points without results
    note: str  # where it was made, if not all on one machine
    about: str  # what it asks


def accuracy_rows(metrics: Metrics) -> list[tuple[str, float, str]]:
    """(name, top-1, group) of everything measured on the test images, for a chart."""
    if "left_out" in metrics["linear_eval"]:
        return []
    linear, knn, tuned = metrics["linear_eval"], metrics["embed"]["knn"], metrics["finetune"]
    return [
        ("linear on backbone", linear["backbone"]["top1"], "trained"),
        ("linear on latent", linear["latent"]["top1"], "trained"),
        ("kNN on backbone", knn["backbone"], "trained"),
        ("kNN on latent", knn["latent"], "trained"),
        ("linear on random encoder's backbone", linear["random_backbone"]["top1"], "random"),
        ("linear on random encoder's latent", linear["random_latent"]["top1"], "random"),
        ("kNN on random encoder's backbone", knn["random_backbone"], "random"),
        ("kNN on random encoder's latent", knn["random_latent"], "random"),
        ("fine-tuned", tuned["top1"], "finetuned"),
        ("from scratch", tuned["scratch"]["top1"], "random"),
    ]


def embedded(png: bytes) -> str:
    """A PNG as a data URL, in WebP, which is smaller, but for pictures too large for it."""
    picture = Image.open(io.BytesIO(png))
    if max(picture.size) > WEBP_PIXELS:
        return "data:image/png;base64," + base64.b64encode(png).decode()
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=80, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def render(
    title: str | None,
    metrics: Metrics,
    figures: dict[str, bytes],
    parameters: str,
    studies: list[Study],
    released: Metrics | None = None,
) -> str:
    """The page as HTML. Without a title it says what was learned from what.

    metrics: every stage's, by the stage's name; figures: PNG bytes by name; parameters: the settings that ran, as YAML;
    released: the card of an encoder of the same images that stands beside (`simsiam.released`).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    linear, run = metrics["linear_eval"], metrics["pretrain"]["trained"][0]
    return environment.get_template("report.html.j2").render(
        title=title or f"What {run['method_name']} learned from {metrics['download']['name']}",
        metrics=metrics,
        gradient=max((linear[space]["gradient_norm"] for space in SPACES if space in linear), default=0),
        run=run,
        stages={name: content["run"][0] for name, content in metrics.items()},
        figures={name: embedded(png) for name, png in figures.items()},
        parameters=parameters,
        released=released,
        studies=[(study, [(caption, embedded(png)) for caption, png in study.figures]) for study in studies],
    )

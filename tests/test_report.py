"""The page and its figures: what cannot be drawn or read costs no numbers, and says so."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from simsiam.errors import UserError
from simsiam.plots import draw, plane_figure, shap_figure
from simsiam.report import WEBP_PIXELS, embedded
from simsiam.settings import load
from stages.report import read_picture, read_study, report
from tests.clones import ROOT
from tests.some import rng


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng().integers(0, 255, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_too_large_for_webp_stays_a_png() -> None:
    assert embedded(png(40, 30)).startswith("data:image/webp;base64,")
    assert embedded(png(2, WEBP_PIXELS)).startswith("data:image/webp;base64,")
    assert embedded(png(2, WEBP_PIXELS + 1)).startswith("data:image/png;base64,")


def test_a_figure_that_cannot_be_drawn_says_so_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(values: list[float]) -> Figure:
        raise ValueError(f"nothing to draw of {values}")

    draw(tmp_path / "maps.png", broken, [1.0])
    assert capsys.readouterr().err == "maps.png could not be drawn: nothing to draw of [1.0]\n"
    assert Image.open(tmp_path / "maps.png").size[0] > 100


def test_shap_of_a_hundred_images_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = rng().standard_normal((100, 3, 8, 8, 4), np.float32)
    logits, labels = values[:, 0, 0, 0], np.arange(100) % 4
    images, shown = np.zeros((100, 8, 8, 3), np.uint8), np.zeros((100, 1), np.int64)
    draw(tmp_path / "shap.png", shap_figure, images, labels, shown, {"frozen": (values, logits)}, ("a", "b", "c", "d"))
    assert capsys.readouterr().err == "" and Image.open(tmp_path / "shap.png").size[1] > WEBP_PIXELS
    assert embedded((tmp_path / "shap.png").read_bytes()).startswith("data:image/png;base64,")


def test_a_cut_or_missing_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "maps.png"
    for content in (b"", png(50, 50)[:700], b"no picture at all"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"maps\.png is no readable picture: delete it and run `dvc repro`"):
            read_picture(path)
    path.unlink()
    with pytest.raises(UserError, match=r"maps\.png is no readable picture"):
        read_picture(path)


DAMAGES: list[tuple[str, Any, str]] = [  # key, what is there instead, what is told
    ("project.backbone.silhouette", ..., "project.json has no project.backbone.silhouette: delete it"),
    ("linear_eval.few_labels", ..., "linear_eval.json has no linear_eval.few_labels: delete it"),
    ("embed.knn", {}, "embed.json has no embed.knn.backbone: delete it"),
    ("pretrain.run", [{}], "pretrain.json has no pretrain.run.seconds: delete it"),
    ("pretrain.trained", [], "IndexError"),
    ("embed.knn", 7, "TypeError"),
    ("download.classes", "ten", "TypeError"),
    ("embed.rankme.latent", "much", "TypeError"),
    ("project.latent", 0.5, "StrictUndefined"),
    ("explain.additivity_residual", None, "TypeError"),
    ("linear_eval.latent", "x", "TypeError"),
]


@pytest.mark.parametrize(("key", "value", "told"), DAMAGES)
def test_damaged_metrics_are_told_in_one_line(key: str, value: Any, told: str, tmp_path: Path) -> None:
    """The committed run's, with one key that is missing or something else."""
    for folder in ("metrics", "figures", "curves"):
        shutil.copytree(ROOT / "reports" / folder, tmp_path / "reports" / folder)
    path = tmp_path / f"reports/metrics/{key.split('.')[0]}.json"
    content = json.loads(path.read_text())
    *parts, last = key.split(".")
    section = content
    for part in parts:
        section = section[part]
    section.pop(last) if value is ... else section.update({last: value})
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        report(load(ROOT / "params.yaml"), tmp_path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(tmp_path / "reports/metrics")) and told in line
    assert line.endswith("run `dvc repro`") and not (tmp_path / "reports/index.html").exists()


GOOD = {
    "name": "dimension", "missing": [], "stale": [], "commands": {"all": "dvc x"}, "claims": [],
    "tables": {"table": "a table"}, "figures": {"accuracy": "a figure"},
}  # fmt: skip


def write_study(folder: Path, content: object) -> Path:
    (folder / "table.html").write_text("<table></table>")
    (folder / "accuracy.png").write_bytes(png(20, 20))
    (folder / "study.json").write_text(json.dumps(content))
    return folder / "study.json"


def test_two_numbers_are_drawn_as_they_are_and_more_by_their_components() -> None:
    """At d = 2 the latent needs no projection; the backbone that the fine-tuned head reads does. The legend fits."""
    xy = np.arange(40.0).reshape(10, 4)
    names = ("latent_1", "latent_2", "finetuned_pca_1", "finetuned_pca_2")
    classes = [f"a long name {number}" for number in range(10)]
    frame = pd.DataFrame(dict(zip(names, xy.T, strict=True)) | {"label": range(10), "class": classes})
    both = plane_figure(frame, classes)
    left, right = both.axes
    assert left.get_xlabel() == "dimension 1" and right.get_xlabel() == "principal component 1"
    for axes, columns in ((left, xy[:, :2]), (right, xy[:, 2:])):
        np.testing.assert_array_equal(np.concatenate([dots.get_offsets() for dots in axes.collections]), columns)
    for figure in (both, plane_figure(frame[["latent_1", "latent_2", "label", "class"]], classes)):
        figure.canvas.draw()
        assert figure.legends[0].get_window_extent().width < figure.bbox.width


def test_studies_stand_in_the_order_of_the_params_and_say_what_they_ask(tmp_path: Path) -> None:
    for folder in ("metrics", "figures", "curves"):
        shutil.copytree(ROOT / "reports" / folder, tmp_path / "reports" / folder)
    for name in ("methods", "dimension", "a_user_s", "collapse"):
        (at := tmp_path / "reports/study" / name).mkdir(parents=True)
        write_study(at, GOOD | {"name": name, "about": f"What {name} asks."})
    report(load(ROOT / "params.yaml"), tmp_path)
    page = (tmp_path / "reports/index.html").read_text()
    assert re.findall(r'<h2 id="study-(\w+)"', page) == ["methods", "dimension", "collapse", "a_user_s"]
    assert all(f"<p>What {name} asks.</p>" in page for name in ("methods", "dimension", "a_user_s", "collapse"))


def test_a_study_is_read_whole_or_named(tmp_path: Path) -> None:
    path = write_study(tmp_path, GOOD)
    study = read_study(path)
    assert study.tables == [("a table", "<table></table>")] and study.figures[0][0] == "a figure"
    wrong = [7, {}, GOOD | {"claims": [3]}, GOOD | {"tables": ["table"]}, GOOD | {"stale": None}, GOOD | {"commands": 4}]
    for content in wrong:
        with pytest.raises(UserError, match=r"study\.json is not a study's .*`python -m ablation\.study` makes it anew"):
            read_study(write_study(tmp_path, content))
    path = write_study(tmp_path, GOOD)
    (tmp_path / "accuracy.png").write_bytes(png(20, 20)[:100])
    with pytest.raises(UserError, match=r"accuracy\.png is no readable picture"):
        read_study(path)
    (tmp_path / "table.html").unlink()
    with pytest.raises(UserError, match=r"table\.html"):
        read_study(path)

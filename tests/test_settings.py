"""Every bad params.yaml ends in one line that names the key, the value and what is allowed."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from simsiam.errors import UserError
from simsiam.params import check, load
from stages.common import share_data

ROOT = Path(__file__).parent.parent


@pytest.fixture
def content() -> Any:
    return copy.deepcopy(YAML(typ="safe").load(ROOT / "params.yaml"))


def change(content: Any, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        content = content[part]
    content[last] = value


def test_ours_is_good() -> None:
    params = load(ROOT / "params.yaml")
    assert params.recipe == "laptop" and params.chosen == params.recipes.laptop
    paper = params.recipes.paper  # Chen & He, appendix D
    assert (paper.pretrain.epochs, paper.pretrain.batch_size, paper.pretrain.lr) == (800, 512, 0.03)
    report = params.recipes.report  # Lind, Bosch & Hu, section 5
    assert (report.pretrain.epochs, report.pretrain.batch_size, report.pretrain.lr) == (50, 16, 0.05)


BAD = [
    ("latent_dim", 0, "greater than or equal to 2"),
    ("latent_dim", "32", "valid integer"),
    ("latent_dim", True, "valid integer"),
    ("latent_dim", 2.5, "valid integer"),
    ("recipe", "desktop", "'laptop', 'report' or 'paper'"),
    ("stop_gradient", "no", "valid boolean"),
    ("seed", -1, "greater than or equal to 0"),
    ("recipes.laptop.pretrain.lr", "5e-4x", "valid number"),
    ("recipes.laptop.pretrain.lr", 0, "greater than 0"),
    ("recipes.laptop.pretrain.batch_size", 50_001, "less than or equal to 50000"),
    ("recipes.paper.pretrain.epochs", 0, "greater than or equal to 1"),
    ("recipes.laptop.model.depth", 34, "10 or 18"),
    ("recipes.laptop.pretrain.augment.crop_scale", [0.9, 0.2], "[smallest, largest]"),
    ("project.perplexity", 5000.0, "smaller than project.points"),
    ("linear_eval.held_out", 49_900, "at most 49488"),
    ("recipes.laptop.pretrain.weight_decay", float("inf"), "finite number"),
    ("explain.images", [10_000], "less than 10000"),
    ("linear_eval.lr", [], "at least 1 item"),
    ("ablation.latent_dim", [0], "greater than or equal to 2"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_a_bad_value(content: Any, key: str, value: Any, allowed: str) -> None:
    change(content, key, value)
    with pytest.raises(UserError) as caught:
        check(content)
    message = str(caught.value)
    assert key in message and allowed in message and "\n" not in message
    assert repr(value).strip("[]") in message


@pytest.mark.parametrize("key", ["latent", "recipes.laptop.pretrain.learning_rate", "embed.k", "recipes.desktop"])
def test_an_unknown_key_names_those_that_are_known(content: Any, key: str) -> None:
    change(content, key, 1)
    known = {"latent": "latent_dim", "recipes.laptop.pretrain.learning_rate": "lr", "embed.k": "knn_k"}.get(key, "laptop")
    with pytest.raises(UserError, match=rf"unknown key {key}: .*\b{known}\b"):
        check(content)


def test_a_missing_key(content: Any) -> None:
    del content["recipes"]["report"]["finetune"]["lr"]
    with pytest.raises(UserError, match=r"recipes\.report\.finetune\.lr is missing"):
        check(content)


@pytest.mark.parametrize("text", ["", "a: [1", "- 1\n- 2\n", "recipe: laptop\nrecipe: paper\n", "seed: 2020-13-45"])
def test_a_file_that_is_no_params_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml") as caught:
        load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", ["5e-4", "1e-05", "0.0005", "1"])
def test_numbers_as_yaml_1_2_has_them(tmp_path: Path, written: str) -> None:
    text = (ROOT / "params.yaml").read_text().replace("      lr: 0.05\n", f"      lr: {written}\n")
    (tmp_path / "params.yaml").write_text(text)
    assert load(tmp_path / "params.yaml").recipes.report.pretrain.lr == float(written)


def test_changes_from_the_command_line() -> None:
    params = load(ROOT / "params.yaml", ["latent_dim=32", "stop_gradient=false", "embed.knn_k=7", "explain.images=[3, 4]"])
    assert (params.latent_dim, params.stop_gradient, params.embed.knn_k, params.explain.images) == (32, False, 7, [3, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("latent_dim", "it should be key=value"),
        ("embed.knn_k.x=3", "it should be key=value, with a key of params.yaml"),
        ("latent=3", "unknown key latent"),
        ("latent_dim=0", "latent_dim is 0: it should be greater"),
        ("latent_dim=[1", "its value is not valid YAML"),
        ("report.title=2020-13-45", "its value is not valid YAML"),
    ],
)
def test_a_bad_change(change: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(ROOT / "params.yaml", [change])
    assert "\n" not in str(caught.value)


def test_a_change_does_not_hide_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("\nlatent_dim: 512", "\nlatent_dim: 0")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match="latent_dim is 0"):
        load(tmp_path / "params.yaml", ["latent_dim=32"])


def test_another_root_shares_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    share_data(Path())  # as before the download
    assert not (tmp_path / "data/cifar10.npz").is_symlink()
    (tmp_path / "data/cifar10.npz").write_bytes(b"images")
    (tmp_path / "same").symlink_to(tmp_path)
    for root in (Path(), tmp_path, Path("../") / tmp_path.name, Path("same")):
        share_data(root)
        assert not (tmp_path / "data/cifar10.npz").is_symlink()
    for root in (Path("points/a"), tmp_path / "points/b", Path("points/../points/c")):
        share_data(root)
        share_data(root)
        assert (root / "data/cifar10.npz").read_bytes() == b"images" and (root / "data/cifar10.npz").is_symlink()


def test_a_stage_ends_in_one_line_without_a_traceback(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("\nlatent_dim: 512", "\nlatent_dim: 0")
    (tmp_path / "params.yaml").write_text(text)
    command = [sys.executable, "-m", "stages.check"]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: params.yaml: latent_dim is 0: ") and result.stderr.count("\n") == 1

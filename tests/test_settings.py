"""Every bad params.yaml ends in one line that names the key, the value and what is allowed."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from ablation.controls import CONTROLS
from simsiam.errors import UserError
from simsiam.settings import Params, changed, check, load, load_point, percent
from tests.some import PLAIN

ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"


@pytest.fixture
def content() -> Any:
    return copy.deepcopy(YAML(typ="safe").load(PARAMS))


def change(content: Any, key: str, value: Any) -> None:
    """Set a key, with dots, making the sections that a recipe has from base."""
    *path, last = key.split(".")
    for part in path:
        content = content.setdefault(part, {})
    content[last] = value


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_ours_is_good() -> None:
    params = load(PARAMS)
    assert params.recipe == "laptop" and params.chosen == params.recipes.laptop
    paper = params.recipes.paper  # Chen & He, appendix D
    assert (paper.pretrain.epochs, paper.pretrain.batch_size, paper.pretrain.lr) == (800, 512, 0.03)
    assert (paper.model.stem, paper.model.depth, paper.model.projector_layers) == ("cifar", 18, 2)
    report = params.recipes.report  # Lind, Bosch & Hu, section 5
    assert (report.pretrain.epochs, report.pretrain.batch_size, report.pretrain.lr) == (50, 16, 0.05)
    assert (report.model.stem, report.model.normalisation, report.pretrain.augment.blur) == ("imagenet", "half", 0.5)


def test_a_recipe_is_base_with_what_it_has_instead(content: Any) -> None:
    """Of every key of base, at every depth, each recipe has its own value where it names the key, and base's elsewhere."""
    recipes = check(content).recipes.model_dump()

    def compare(base: Any, own: Any, resolved: Any) -> None:
        assert set(resolved) == set(base) | set(own)
        for key, value in resolved.items():
            if isinstance(value, dict):
                compare(base.get(key, {}), own.get(key, {}), value)
            else:
                assert value == (own[key] if key in own else base[key]), key

    for name in ("base", "laptop", "report", "paper"):
        compare(content["recipes"]["base"], content["recipes"][name], recipes[name])
    assert recipes["laptop"]["pretrain"]["augment"]["view_size"] == 16 and recipes["base"]["model"]["depth"] == 18
    ours = recipes["base"]["methods"]["simsiam"]
    assert recipes["report"]["methods"]["simsiam"] == ours | {"predictor_hidden": 128} != ours


def test_a_list_is_replaced_and_not_merged(content: Any) -> None:
    change(content, "recipes.report.pretrain.augment.jitter", [0.1, 0.1, 0.1, 0.1])
    recipes = check(content).recipes
    assert recipes.report.pretrain.augment.jitter == [0.1] * 4
    assert recipes.base.pretrain.augment.jitter == [0.4, 0.4, 0.4, 0.1]


def test_a_change_of_base_reaches_the_recipes_that_have_nothing_else() -> None:
    params = load(PARAMS, ["recipes.base.pretrain.momentum=0.5", "recipes.base.model.width=16"])
    assert params.recipes.laptop.pretrain.momentum == params.recipes.paper.pretrain.momentum == 0.5
    assert params.recipes.laptop.model.width == 32 and params.recipes.paper.model.width == 16


BAD = [
    ("latent_dim", 0, "at least 2"),
    ("latent_dim", "32", "a whole number"),
    ("latent_dim", True, "a whole number"),
    ("latent_dim", 2.5, "a whole number"),
    ("recipe", "desktop", "'laptop', 'report' or 'paper'"),
    ("recipe", "base", "'laptop', 'report' or 'paper'"),
    ("stop_gradient", "no", "true or false"),
    ("seed", -1, "at least 0"),
    ("seed", 2**32, "less than 4294967296"),
    ("recipes.laptop.pretrain.lr", "5e-4x", "be a number"),
    ("recipes.laptop.pretrain.lr", 0, "more than 0"),
    ("recipes.laptop.pretrain.batch_size", 3, "at least 4"),
    ("recipes.base.finetune.batch_size", 2, "at least 4"),
    ("recipes.paper.pretrain.epochs", 0, "at least 1"),
    ("recipes.paper.pretrain.momentum", 1.0, "less than 1"),
    ("recipes.laptop.model.depth", 34, "10 or 18"),
    ("recipes.laptop.model.width", 4, "at least 8"),
    ("recipes.laptop.pretrain.augment.crop_scale", [0.9, 0.2], "[smallest, largest]"),
    ("recipes.laptop.pretrain.augment.jitter", [0.4, 0.4, 0.4, 0.6], "at most 0.5"),
    ("recipes.laptop.finetune.budget", "endless", "'fixed' or 'grow'"),
    ("recipes.laptop.finetune.labels", 0.0, "more than 0"),
    ("recipes.laptop.pretrain.weight_decay", float("inf"), "a number, neither infinite nor"),
    ("project.perplexity", 0.99, "at least 1"),
    ("explain.images", [-1], "at least 0"),
    ("finetune", {"lr": [0.1]}, "unknown key finetune"),
    ("linear_eval.few_labels", [0.99], "at most 0.9"),
    ("ablation.studies.dimension.seeds", [], "at least 1 item"),
    ("ablation.studies.dimension.stages", ["report"], "'pretrain', 'embed'"),
    ("data.source", "", "at least 1 character"),
    ("data.size", 8, "it should be at least 16"),
    ("data.size", 256, "it should be at most 224"),
    ("data.square", "stretch", "'crop' or 'pad'"),
    ("data.test_share", 0.0, "it should be at least 0.01"),
    ("data.classes", ["a", "b", "a"], "two of them are the same"),
    ("data.classes", "a", "it should be a list"),
    ("embed.knn_temperature", 11.0, "it should be at most 10"),
    ("embed.knn_temperature", [], "it should be a number"),
    ("embed.queries", 3, "it should be a list, such as [1, 2]"),
    ("embed.queries", ["1"], "it should be a whole number"),
    ("embed", 3, "it should be a section of keys and values"),
    ("recipes.base.methods", 3, "it should be a section of keys and values"),
    ("report.title", 7, "it should be a text"),
    ("stop_gradient", 1, "it should be true or false"),
    ("method", "a b", "it should be a name of letters"),
    ("recipes.laptop.finetune.lr", [0.1, 0.2, 0.1], "one of them stands there twice"),
    ("recipes.base.pretrain.augment.jitter", [0.1], "it should have at least 4 items, not 1"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_a_bad_value(content: Any, key: str, value: Any, allowed: str) -> None:
    change(content, key, value)
    with pytest.raises(UserError) as caught:
        check(content)
    message = one_line(caught)
    assert not any(word in message for word in ("Input", "valid ", "parse", "instance", "validation"))
    assert key in message and allowed in message
    assert "unknown" in message or repr(value).strip("[]") in message


def test_a_perplexity_has_fewer_neighbours_than_there_are_points(content: Any) -> None:
    content["project"] = {"points": 50, "perplexity": 50.0}
    with pytest.raises(UserError) as caught:
        check(content)
    assert "project" in one_line(caught) and "perplexity should be smaller than points, which is 50" in str(caught.value)
    content["project"]["perplexity"] = 49.0
    check(content)


@pytest.mark.parametrize(
    ("shares", "same"), [([0.1, 0.1], True), ([0.01, 0.1, 0.0100000001], True), ([0.01, 0.01001], False), ([], False)]
)
def test_shares_that_read_alike_in_per_cent_are_refused(content: Any, shares: list[float], same: bool) -> None:
    """The metrics name them so, and one would take the other's place."""
    content["linear_eval"]["few_labels"] = shares
    if not same:
        assert len({percent(share) for share in check(content).linear_eval.few_labels}) == len(shares)
        return
    with pytest.raises(UserError, match=r"linear_eval\.few_labels .*two of them are the same in per cent") as caught:
        check(content)
    one_line(caught)


UNKNOWN = [
    ("latent", "latent", "latent_dim"),
    ("recipes.desktop", "recipes.desktop", "laptop"),
    ("recipes.laptop.modle", "recipes.laptop.modle", "model"),
    ("recipes.laptop.pretrain.learning_rate", "recipes.laptop.pretrain.learning_rate", "lr"),
    ("recipes.base.pretrain.augment.scale", "recipes.base.pretrain.augment.scale", "crop_scale"),
    ("recipes.paper.pretrain.augment.scale", "recipes.paper.pretrain.augment.scale", "crop_scale"),
    ("embed.k", "embed.k", "knn_k"),
    ("ablation.point", "ablation.point", "points"),
    ("ablation.studies.dimension.seed", "ablation.studies.dimension.seed", "seeds"),
]


@pytest.mark.parametrize(("key", "named", "known"), UNKNOWN)
def test_an_unknown_key_names_those_that_are_known(content: Any, key: str, named: str, known: str) -> None:
    change(content, key, 1)
    with pytest.raises(UserError, match=rf"^params\.yaml: unknown key {named}: allowed here are .*\b{known}\b") as caught:
        check(content)
    one_line(caught)


def test_a_missing_key(content: Any) -> None:
    del content["recipes"]["base"]["finetune"]["lr"]
    with pytest.raises(UserError, match=r"recipes\.base\.finetune\.lr is missing"):
        check(content)
    del content["recipes"]["base"]
    with pytest.raises(UserError, match=r"recipes\.base is missing"):
        check({key: value for key, value in content.items()})


@pytest.mark.parametrize("text", ["", "a: [1", "- 1\n- 2\n", "recipe: laptop\nrecipe: paper\n", "seed: 2020-13-45", "3"])
def test_a_file_that_is_no_params_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml") as caught:
        load(tmp_path / "params.yaml")
    one_line(caught)


@pytest.mark.parametrize("value", [None, 3, [1], "x"])
@pytest.mark.parametrize("key", ["recipes", "recipes.base", "recipes.laptop", "ablation", "ablation.points", "embed"])
def test_a_section_that_is_none(content: Any, key: str, value: Any) -> None:
    change(content, key, value)
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as caught:
        check(content)
    one_line(caught)


@pytest.mark.parametrize("key", ["3: 4", "true: 4", "null: 4", "recipes: {3: {}}", "ablation: {points: {3: {seed: 1}}}"])
def test_a_key_that_is_no_text(key: str) -> None:
    name, _, rest = key.partition(": ")
    content = YAML(typ="safe").load(PARAMS) | YAML(typ="safe").load(f"{name}: {rest}")
    with pytest.raises(UserError) as caught:
        check(content)
    one_line(caught)


@pytest.mark.parametrize("written", ["5e-4", "1e-05", "0.0005", "1"])
def test_numbers_as_yaml_1_2_has_them(tmp_path: Path, written: str) -> None:
    text, count = re.subn(r"(batch_size: 16\n      lr:) 0\.05\n", rf"\1 {written}\n", PARAMS.read_text())
    assert count == 1
    (tmp_path / "params.yaml").write_text(text)
    assert load(tmp_path / "params.yaml").recipes.report.pretrain.lr == float(written)


def test_changes_from_the_command_line() -> None:
    given = ["latent_dim=32", "stop_gradient=false", "embed.knn_k=7", "explain.images=[3, 4]", "report.title=a=b"]
    params = load(PARAMS, given)
    assert (params.latent_dim, params.stop_gradient, params.embed.knn_k, params.explain.images) == (32, False, 7, [3, 4])
    assert params.report.title == "a=b"
    assert load(PARAMS, ["embed={knn_k: 3}"]).embed.model_dump() == load(PARAMS).embed.model_dump() | {"knn_k": 3}


def test_a_change_may_name_a_key_of_a_recipe_that_only_base_has(content: Any) -> None:
    assert "momentum" not in content["recipes"]["laptop"]["pretrain"]
    assert "target" not in content["recipes"]["laptop"]["methods"]["simsiam"]
    given = ["recipes.laptop.pretrain.momentum=0.8", "recipes.laptop.methods.simsiam.target=ema"]
    params = load(PARAMS, [*given, "recipes.laptop.pretrain.augment.blur=0.25"])
    assert (params.chosen.pretrain.momentum, params.chosen.pretrain.augment.blur) == (0.8, 0.25)
    assert params.chosen.pretrain.augment.view_size == 16  # the recipe's own stays
    assert params.chosen.methods["simsiam"] == load(PARAMS).chosen.methods["simsiam"] | {"target": "ema"}
    assert params.recipes.paper.pretrain.momentum == 0.9


def test_the_last_of_two_changes_counts_and_the_file_s_content_is_not_touched(content: Any) -> None:
    before = copy.deepcopy(content)
    result = changed(content, {"recipes.laptop.pretrain.lr": 0.1, "seed": 1} | {"seed": 2})
    assert result["seed"] == 2 and result["recipes"]["laptop"]["pretrain"]["lr"] == 0.1
    assert content == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("latent_dim", "latent_dim: it should be key=value"),
        ("embed.knn_k.x=3", "embed.knn_k is {'x': 3}: it should be a whole number"),
        ("latent=3", "latent: there is no such key in params.yaml; it has recipe, method, latent_dim"),
        ("embed.k=3", "unknown key embed.k: allowed here are knn_k"),
        ("recipes.laptop.pretrain.augment.zoom=3", "unknown key recipes.laptop.pretrain.augment.zoom: allowed here are"),
        ("=3", "there is no such key"),
        ("embed.=3", "unknown key embed."),
        ("latent_dim=0", "latent_dim is 0: it should be at least"),
        ("latent_dim=", "latent_dim is None: it should be"),
        ("latent_dim=[1", "its value is not valid YAML"),
        ("report.title=2020-13-45", "its value is not valid YAML"),
    ],
)
def test_a_bad_change(change: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(PARAMS, [change])
    assert message in one_line(caught)


def test_a_change_does_not_hide_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    text = PARAMS.read_text().replace("\nlatent_dim: 512", "\nlatent_dim: 0")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match="latent_dim is 0"):
        load(tmp_path / "params.yaml", ["latent_dim=32"])


def test_a_point_is_the_params_with_its_changes(content: Any) -> None:
    points = content["ablation"]["points"]
    for name, changes in {name: points[name] for name in ("d8", "labels_all", "simsiam_ema_no_stop_gradient")}.items():
        expected = load(PARAMS, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
        assert load_point(PARAMS, name) == expected, name
        assert load_point(PARAMS, name) != load(PARAMS) or name == "labels_all"  # which is the default
    assert load_point(PARAMS, "d8").explain.mass_images == 100 and load_point(PARAMS, "d8").latent_dim == 8
    assert load_point(PARAMS, "d8", seed=7).seed == 7 and load_point(PARAMS, "d8").seed == load(PARAMS).seed
    assert load_point(PARAMS, "labels_1").chosen.finetune.labels == 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latentdim": 8}, "latentdim: there is no such key in params.yaml"),
        ({"embed.k": 8}, r"ablation\.points\.bad: unknown key embed\.k"),
        ({"latent_dim": 1}, r"ablation\.points\.bad: latent_dim is 1: it should be at least"),
    ],
)
def test_a_point_with_a_bad_change_is_named(tmp_path: Path, content: Any, changes: Any, message: str) -> None:
    content["ablation"]["points"]["bad"] = changes
    YAML(typ="safe").dump(content, tmp_path / "params.yaml")
    with pytest.raises(UserError, match=message) as caught:
        load_point(tmp_path / "params.yaml", "bad")
    one_line(caught)


def test_a_point_and_a_study_s_points_have_to_be_defined(content: Any) -> None:
    with pytest.raises(UserError, match=r"ablation\.points has no d3: it has d2, d8"):
        load_point(PARAMS, "d3")
    content["ablation"]["studies"]["dimension"]["points"] = ["d2", "d3"]
    with pytest.raises(UserError, match=r"study dimension has points that are not in ablation\.points: d3") as caught:
        check(content)
    one_line(caught)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "a\n"])
def test_a_point_s_name_is_good_for_a_folder(content: Any, name: str) -> None:
    content["ablation"]["points"][name] = {"seed": 1}
    with pytest.raises(UserError, match="ablation"):
        check(content)


def test_what_a_run_depends_on() -> None:
    """The chosen recipe with the chosen method, and neither the others nor studies nor the page's title."""
    ours, chosen = load(PARAMS).in_use(), load(PARAMS).chosen.model_dump()
    assert ours["recipes"] == {"laptop": chosen | {"methods": {"simsiam": chosen["methods"]["simsiam"]}}}
    assert list(load(PARAMS, ["method=byol"]).in_use()["recipes"]["laptop"]["methods"]) == ["byol"]
    for idle in ("recipes.paper.pretrain.lr=0.7", "report.title=x", "ablation.points.d2.latent_dim=3"):
        assert load(PARAMS, [idle]).in_use() == ours, idle
    for key in ("recipes.base.pretrain.momentum=0.1", "latent_dim=3", "embed.knn_k=3", "recipe=paper", "method=x"):
        assert load(PARAMS, [key]).in_use() != ours, key


def test_settings_stay_as_they_were_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PLAIN.flip = 2.0
    params = load(PARAMS)
    assert Params.model_validate(params.model_dump()) == params


def test_a_stage_ends_in_one_line_without_a_traceback(tmp_path: Path) -> None:
    text = PARAMS.read_text().replace("\nlatent_dim: 512", "\nlatent_dim: 0")
    (tmp_path / "params.yaml").write_text(text)
    command = [sys.executable, "-m", "stages.check"]
    environment = {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: params.yaml: latent_dim is 0: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ablation.studies.dimension.seeds": [0, 0]}, "one of them stands there twice"),
        ({"ablation.studies.dimension.points": ["d2", "d2"]}, "one of them stands there twice"),
        ({"ablation.points.d2": {"seed": 3}}, "point d2 cannot change seed"),
        *(
            ({f"ablation.points.{name}": {"latent_dim": 3}}, f"a point cannot be called {name}")
            for name in ("search", *CONTROLS)
        ),
        ({"ablation.points.d2": {"data.source": "npm"}}, "study dimension: point d2 has other images"),
        ({"explain.mass_images": 1}, "one image has no interval"),
    ],
)
def test_what_would_count_one_run_twice_or_change_nothing_is_refused(content: Any, changes: Any, message: str) -> None:
    for key, value in changes.items():
        change(content, key, value)
    with pytest.raises(UserError, match=message):
        check(content)

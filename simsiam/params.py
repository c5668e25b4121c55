"""The schema of params.yaml: every key that may be set, its type and its range. The library knows nothing of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from simsiam.errors import UserError

TRAIN_IMAGES = 50_000
TEST_IMAGES = 10_000

Epochs = Annotated[int, Field(ge=1, le=100_000)]
Units = Annotated[int, Field(ge=1, le=16_384)]
WeightDecay = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=100)]
BatchSize = Annotated[int, Field(ge=2, le=TRAIN_IMAGES)]
HeldOut = Annotated[int, Field(ge=10, lt=TRAIN_IMAGES)]
LatentDim = Annotated[int, Field(ge=2, le=16_384)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
RecipeName = Literal["laptop", "report", "paper"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "always", "never"]


class Section(BaseModel):
    """Closed and strict: an unknown key, or a string where a number belongs, is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def leaves_a_batch(held_out: int, info: ValidationInfo) -> int:
    """Refuse a held-out slice that leaves less than one batch to train on."""
    batch_size = info.data.get("batch_size", 0)
    if held_out + batch_size > TRAIN_IMAGES:
        raise ValueError(f"with batch_size {batch_size} it should be at most {TRAIN_IMAGES - batch_size}")
    return held_out


class Data(Section):
    source: Annotated[str, Field(min_length=1)]


class Embed(Section):
    knn_k: Annotated[int, Field(ge=1, le=5_000)]
    knn_temperature: Annotated[float, Field(ge=0.001)]
    queries: list[Annotated[int, Field(ge=0, lt=TEST_IMAGES)]] = Field(min_length=1, max_length=20)


class LinearEval(Section):
    epochs: Epochs
    batch_size: BatchSize
    lr: list[LearningRate] = Field(min_length=1)
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: WeightDecay
    held_out: HeldOut
    few_labels: list[Annotated[float, Field(ge=0.001, lt=1)]]

    @field_validator("held_out")
    @classmethod
    def _leaves_a_batch(cls, held_out: int, info: ValidationInfo) -> int:
        return leaves_a_batch(held_out, info)


class Project(Section):
    points: Annotated[int, Field(ge=50, le=TEST_IMAGES)]
    perplexity: Annotated[float, Field(gt=0)]

    @field_validator("perplexity")
    @classmethod
    def _fits(cls, perplexity: float, info: ValidationInfo) -> float:
        points = info.data.get("points", perplexity + 1)
        if perplexity >= points:
            raise ValueError(f"it should be smaller than project.points, which is {points}")
        return perplexity


class Explain(Section):
    images: list[Annotated[int, Field(ge=0, lt=TEST_IMAGES)]] = Field(min_length=1, max_length=100)
    outputs: Annotated[int, Field(ge=1, le=10)]
    background: Annotated[int, Field(ge=10, le=1_000)]


class Report(Section):
    title: Annotated[str, Field(min_length=1)]


class Model(Section):
    stem: Literal["imagenet", "cifar", "strided"]
    depth: Literal[10, 18]
    # Below 8, torch 2.14.1 leaves the gradient of a strided 1x1 convolution in channels_last unset on the CPU.
    width: Annotated[int, Field(ge=8, le=1024)]
    normalisation: Literal["cifar10", "half"]
    projector_layers: Annotated[int, Field(ge=1, le=10)]
    projector_hidden: Units
    latent_norm: bool
    predictor_hidden: Units | None


class Augment(Section):
    view_size: Annotated[int, Field(ge=8, le=32)]
    crop_scale: list[Annotated[float, Field(ge=0.01, le=1)]] = Field(min_length=2, max_length=2)
    flip: Probability
    jitter: list[Strength] = Field(min_length=4, max_length=4)
    jitter_probability: Probability
    grey: Probability
    blur: Probability

    @field_validator("crop_scale")
    @classmethod
    def _in_order(cls, scale: list[float]) -> list[float]:
        if scale[0] > scale[1]:
            raise ValueError("it should be [smallest, largest]")
        return scale

    @field_validator("jitter")
    @classmethod
    def _hue_is_half_a_turn_at_most(cls, jitter: list[float]) -> list[float]:
        if jitter[3] > 0.5:
            raise ValueError("its last number (hue, in turns) should be at most 0.5")
        return jitter


class Pretrain(Section):
    epochs: Epochs
    batch_size: BatchSize
    lr: LearningRate
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: WeightDecay
    predictor_lr: Literal["constant", "cosine"]
    precision: Precision
    compile: Compile
    augment: Augment


class Finetune(Section):
    epochs: Epochs
    batch_size: BatchSize
    lr: list[LearningRate] = Field(min_length=1)
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: WeightDecay
    held_out: HeldOut
    precision: Precision
    compile: Compile
    augment: Augment

    @field_validator("held_out")
    @classmethod
    def _leaves_a_batch(cls, held_out: int, info: ValidationInfo) -> int:
        return leaves_a_batch(held_out, info)


class Recipe(Section):
    model: Model
    pretrain: Pretrain
    finetune: Finetune


class Recipes(Section):
    laptop: Recipe
    report: Recipe
    paper: Recipe


class FewLabels(Section):
    latent_dim: list[LatentDim]
    share: list[Annotated[float, Field(ge=0.001, le=1)]] = Field(min_length=1)


class ShapMass(Section):
    latent_dim: list[LatentDim]
    images: Annotated[int, Field(ge=10, lt=TEST_IMAGES)]
    background: Annotated[int, Field(ge=10, le=1_000)]


class Ablation(Section):
    recipe: list[RecipeName] = Field(min_length=1)
    seed: list[Seed] = Field(min_length=1)
    latent_dim: list[LatentDim] = Field(min_length=1)
    without_stop_gradient: list[LatentDim]
    few_labels: FewLabels
    shap_mass: ShapMass


class Params(Section):
    """The whole of params.yaml."""

    recipe: RecipeName
    latent_dim: LatentDim
    stop_gradient: bool
    seed: Seed
    data: Data
    embed: Embed
    linear_eval: LinearEval
    project: Project
    explain: Explain
    report: Report
    recipes: Recipes
    ablation: Ablation

    @property
    def chosen(self) -> Recipe:
        """The recipe that `recipe` names."""
        recipe: Recipe = getattr(self.recipes, self.recipe)
        return recipe


def load(path: Path, changes: Sequence[str] = ()) -> Params:
    """Read and check params.yaml as YAML 1.2, with `changes` such as "latent_dim=32" or "embed.knn_k=20".

    Raises UserError with one line on the first thing that is wrong.
    """
    yaml = YAML(typ="safe")
    try:
        content = yaml.load(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this from the folder that holds params.yaml") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no such date or number
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if changes:
        check(content, path.name)  # what is wrong with the file is not the change's fault
    for change in changes:
        key, equals, value = change.partition("=")
        *sections, last = key.split(".")
        try:
            section = content
            for name in sections:
                section = section[name]
            section[last] = yaml.load(value)
        except (KeyError, TypeError):
            raise UserError(f"{change}: it should be key=value, with a key of {path.name} such as latent_dim") from None
        except (YAMLError, ValueError, RecursionError):
            raise UserError(f"{change}: its value is not valid YAML") from None
        if not equals:
            raise UserError(f"{change}: it should be key=value")
    return check(content, path.name)


def check(content: Any, name: str = "params.yaml") -> Params:
    """Turn a parsed params.yaml into Params. Raises UserError naming the key, its value and what is allowed."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(_keys_beside(first["loc"]))
            raise UserError(f"{name}: unknown key {key}: allowed here are {known}") from None
        if first["type"] == "missing":
            raise UserError(f"{name}: {key} is missing") from None
        allowed = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise UserError(f"{name}: {key or 'the whole file'} is {first['input']!r}: {allowed}") from None


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Params
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return list(section.model_fields)

"""Every setting: its name, type and range, defined here once and for all.

params.yaml gives the values; each part of the library takes its own section. The sections are closed and strict, so a
mistyped key or a text where a number belongs is refused, with one line that says what is allowed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from simsiam.errors import UserError


def in_order(scale: list[float]) -> list[float]:
    """Raises ValueError where the first of two is larger than the second."""
    if scale[0] > scale[1]:
        raise ValueError("it should be [smallest, largest]")
    return scale


Count = Annotated[int, Field(ge=1, le=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=100)]
Area = Annotated[float, Field(ge=0.01, le=1)]
CropScale = Annotated[list[Area], Field(min_length=2, max_length=2), AfterValidator(in_order)]
Index = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^\w[\w.=+-]*$")]
S = TypeVar("S", bound="Section")
Changes = dict[str, Any]  # key of params.yaml, with dots -> value


class Section(BaseModel):
    """Closed and strict: an unknown key, or a string where a number belongs, is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    """The encoder's network.

    stem: "imagenet" is torchvision's 7x7 stride 2 and max-pool; "cifar" is 3x3 stride 1 without pooling (Chen & He,
    appendix D); "strided" is 3x3 stride 2 without pooling, a quarter of the "cifar" work.
    """

    stem: Literal["imagenet", "cifar", "strided"]
    depth: Literal[10, 18]
    # Channels of the first stage; the pooled features have 8 times as many. Below 8, torch 2.14.1 leaves the gradient of a
    # strided 1x1 convolution in channels_last unset on the CPU.
    width: Annotated[int, Field(ge=8, le=1024)]
    first_filters: Literal["random", "whitening"]  # what the first convolution starts with (`simsiam.whitening`)
    normalisation: Literal["data", "half"]  # the images' own mean and deviation, or .5 and .5
    projector_layers: Annotated[int, Field(ge=1, le=10)]
    projector_hidden: Annotated[int, Field(ge=1, le=16_384)]
    hidden_norm: bool  # BatchNorm in the hidden layers of the heads
    latent_norm: bool | None  # BatchNorm on the latent; None: where the method's authors have it


class EncoderSettings(Model):
    """All that it takes to build an encoder again."""

    latent_norm: bool
    hidden_norm: bool = True  # this and what follows: of files from before there was a choice
    first_filters: Literal["random", "whitening"] = "random"
    filters: tuple[float, ...] = ()  # of the first convolution, one (3, k, k) after another: the other channels' are random
    latent_dim: int
    seed: int  # of the initial weights
    mean: tuple[float, ...]  # of each channel, which the network subtracts
    std: tuple[float, ...]


class Augment(Section):
    """What a view goes through. A probability or strength of 0 leaves the operation out altogether."""

    view_size: Annotated[int, Field(ge=8, le=512)]  # side of a view in pixels; params.yaml has it for images of 32
    crop_scale: CropScale  # of the image's area
    flip: Share  # probability of a horizontal flip
    jitter: list[Share] = Field(min_length=4, max_length=4)  # strength: brightness, contrast, saturation, hue
    jitter_probability: Share
    grey: Share  # probability of losing all colour
    blur: Share  # probability of a 3x3 Gaussian blur, sigma .1 to 2 pixels

    @field_validator("jitter")
    @classmethod
    def _hue_is_half_a_turn_at_most(cls, jitter: list[float]) -> list[float]:
        if jitter[3] > 0.5:
            raise ValueError("its last number (hue, in turns) should be at most 0.5")
        return jitter


class Training(Section):
    """What the training loop needs besides a learning rate and a seed."""

    epochs: Count
    min_steps: Annotated[int, Field(ge=0, le=1_000_000)]  # few images get as many epochs more as it takes
    # Of all processes together. BatchNorm over two or three images leaves hardly anything to learn from.
    batch_size: Annotated[int, Field(ge=4)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Share
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", "always", "never"]


class Pretrain(Training):
    lr: Rate  # for a batch of 256, as everywhere; the peak is lr * batch_size / 256 (Goyal et al. 2017)
    knn: Annotated[int, Field(ge=0, le=100_000)]  # training images kept from it, that are classified after every epoch
    augment: Augment


class Finetune(Training):
    lr: list[Rate] = Field(min_length=1)  # of several, the best on the held-out slice
    scratch_lr: list[Rate] | None = Field(min_length=1)  # of the training from scratch; None: the same
    held_out: Count  # training images set aside to choose
    space: Literal["latent", "backbone"]  # what the linear head reads
    labels: Annotated[float, Field(gt=0, le=1)]  # share of the training images whose labels are used
    budget: Literal["fixed", "grow"]  # grow: twice the epochs, again and again, as long as the held-out top-1 rises
    augment: Augment

    @field_validator("lr", "scratch_lr")
    @classmethod
    def _each_once(cls, rates: list[float] | None) -> list[float] | None:
        return rates and each_once(rates)


class Recipe(Section):
    model: Model
    pretrain: Pretrain
    finetune: Finetune
    methods: dict[Name, dict[Name, Any]]  # by method, what is its alone; the method's own module says what that is


class Recipes(Section):
    """`base` whole, and of the others what differs from it; here they are whole, too."""

    base: Recipe
    laptop: Recipe
    report: Recipe
    paper: Recipe

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("base"), dict):
            return content
        base = content["base"]
        return {name: base if name == "base" else merged(base, changes) for name, changes in content.items()}


class Data(Section):
    source: Annotated[str, Field(min_length=1)]
    size: Annotated[int, Field(ge=16, le=224)] | None  # side in pixels; None: what the source has, from 16 up to 64
    square: Literal["crop", "pad"]
    test_share: Annotated[float, Field(ge=0.01, le=0.9)]  # of each class, where the source has no test images
    classes: list[Annotated[str, Field(min_length=1)]] | None  # other names than the source's, in its order

    @field_validator("classes")
    @classmethod
    def _all_different(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError("two of them are the same")
        return names


class Embed(Section):
    knn_k: Count
    knn_temperature: Annotated[float, Field(ge=0.001, le=10)]
    queries: list[Index] = Field(min_length=1, max_length=20)


class LinearEval(Section):
    held_out: Count
    few_labels: list[Annotated[float, Field(ge=0.0001, le=0.9)]]
    draws: Annotated[int, Field(ge=1, le=100)]

    @field_validator("few_labels")
    @classmethod
    def _distinct(cls, shares: list[float]) -> list[float]:
        if len({percent(share) for share in shares}) < len(shares):
            raise ValueError("two of them are the same in per cent, to six digits")
        return shares


class Project(Section):
    points: Annotated[int, Field(ge=50)]
    perplexity: Annotated[float, Field(ge=1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.perplexity >= self.points:
            raise ValueError(f"perplexity should be smaller than points, which is {self.points}")
        return self


class Explain(Section):
    images: list[Index] = Field(min_length=1, max_length=100)
    outputs: Count
    background: Annotated[int, Field(ge=10, le=1_000)]
    mass_images: Annotated[int, Field(ge=0)]
    mass_background: Annotated[int, Field(ge=10, le=1_000)]

    @field_validator("mass_images")
    @classmethod
    def _has_an_interval(cls, images: int) -> int:
        if images == 1:
            raise ValueError("it should be 0, or 2 or more: one image has no interval")
        return images


class Report(Section):
    title: Annotated[str, Field(min_length=1)] | None  # None: made of method and images


StageName = Literal["download", "look", "pretrain", "embed", "linear_eval", "finetune", "project", "explain"]


class Study(Section):
    about: str = ""  # what it asks, for the page
    points: list[Name] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1)
    stages: list[StageName] = Field(min_length=1)  # that its points go through

    @field_validator("points", "seeds", "stages")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        return each_once(values)


class Patches(Section):
    """The dictionary of patches that is the control without a network."""

    centroids: Annotated[int, Field(ge=2, le=16_384)]
    patches: Annotated[int, Field(ge=1_000, le=1_000_000)]  # that it is learned from


class Ablation(Section):
    patches: Patches
    points: dict[Name, Changes]
    studies: dict[Name, Study]
    rates: dict[Name, list[Rate]]  # of each method those that are tried (`ablation.rates`), for a batch of 256

    @field_validator("rates")
    @classmethod
    def _equally_many(cls, rates: dict[str, list[float]]) -> dict[str, list[float]]:
        if not rates or len(counts := {len(each_once(of)) for of in rates.values()}) > 1 or 0 in counts:
            raise ValueError("each method should have the same number of learning rates, one at least")
        return rates

    @model_validator(mode="after")
    def _defined(self) -> Self:
        if taken := sorted({"patches", "random_blocks", "search"} & self.points.keys()):  # folders of ablation/results
            raise ValueError(f"a point cannot be called {taken[0]}: ablation/results/{taken[0]} has other results")
        for name, changes in self.points.items():
            if useless := [key for key in changes if key.split(".")[0] in ("seed", "report", "ablation")]:
                raise ValueError(f"point {name} cannot change {useless[0]}: seeds are a study's")
        for name, study in self.studies.items():
            if unknown := set(study.points) - set(self.points):
                raise ValueError(f"study {name} has points that are not in ablation.points: {', '.join(sorted(unknown))}")
            for point in study.points:
                others = any(key.split(".")[0] == "data" for key in self.points[point])
                if others and "download" not in study.stages:
                    raise ValueError(f"study {name}: point {point} has other images: its stages should begin with download")
        return self


class Params(Section):
    """The whole of params.yaml."""

    recipe: Literal["laptop", "report", "paper"]
    method: Name
    latent_dim: Annotated[int, Field(ge=2, le=16_384)]
    stop_gradient: bool
    seed: Annotated[int, Field(ge=0, lt=2**32)]
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

    def in_use(self) -> dict[str, Any]:
        """All that a run depends on: everything but the studies, the title and what is of no chosen recipe or method."""
        content, chosen = self.model_dump(exclude={"recipes", "ablation", "report"}), self.chosen.model_dump()
        chosen["methods"] = {name: of for name, of in chosen["methods"].items() if name == self.method}
        return content | {"recipes": {self.recipe: chosen}}


def each_once(values: list[Any]) -> list[Any]:
    """Raises ValueError where one of them stands there twice."""
    if len(set(values)) < len(values):
        raise ValueError("one of them stands there twice")
    return values


def percent(share: float) -> str:
    """A share as the metrics name it: 0.01 -> "1%"."""
    return f"{100 * share:g}%"


def merged(base: Any, changes: Any) -> Any:
    """`base` with what `changes` has instead, section by section."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: merged(base[key], value) if key in base else value for key, value in changes.items()}


def load(path: Path, changes: Sequence[str] = ()) -> Params:
    """Read and check params.yaml as YAML 1.2, with `changes` such as "latent_dim=32" or "embed.knn_k=20".

    Raises UserError with one line on the first thing that is wrong.
    """
    content = _read(path)
    if not changes:
        return check(content, path.name)
    given: Changes = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"{change}: it should be key=value")
        try:
            given[key] = YAML(typ="safe").load(value)
        except (YAMLError, ValueError, RecursionError):
            raise UserError(f"{change}: its value is not valid YAML") from None
    check(content, path.name)  # what is wrong with the file is not the changes' fault
    return check(changed(content, given), path.name)


def load_point(path: Path, name: str, seed: int | None = None) -> Params:
    """params.yaml as the point `name` of its `ablation` changes it, with `seed` where one is given."""
    content = _read(path)
    points = check(content, path.name).ablation.points
    if name not in points:
        raise UserError(f"{path.name}: ablation.points has no {name}: it has {', '.join(points)}")
    try:
        content = changed(content, points[name] | ({} if seed is None else {"seed": seed}))
    except UserError as error:
        raise UserError(f"{path.name}: ablation.points.{name}: {error}") from None
    return check(content, f"ablation.points.{name}")


def changed(content: Any, changes: Changes) -> Any:
    """A parsed params.yaml with other values for some keys. A key of a recipe may be one that only its base has.

    Raises UserError where there is no such key.
    """
    for key, value in changes.items():
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        if key.split(".")[0] not in content:
            raise UserError(f"{key}: there is no such key in params.yaml; it has {', '.join(content)}")
        content = merged(content, nested)
    return content


def check(content: Any, name: str = "params.yaml") -> Params:
    """Turn a parsed params.yaml into Params. Raises UserError naming the key, its value and what is allowed."""
    return checked(Params, content, name)


def checked(section: type[S], content: Any, name: str, prefix: str = "") -> S:
    """Validate a section. Raises UserError with one line that names `name`, the key, its value and what is allowed."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = prefix + ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(_keys_beside(section, first["loc"]))
            raise UserError(f"{name}: unknown key {key}: allowed here are {known}") from None
        if first["type"] == "missing":
            raise UserError(f"{name}: {key} is missing") from None
        allowed = _in_words(first["type"], first["msg"])
        value = repr(first["input"])
        shown = value if len(value) <= 80 else "not right"
        raise UserError(f"{name}: {key or 'the whole file'} is {shown}: {allowed}") from None


KINDS = {  # pydantic's kinds of error -> what is allowed, as people say it; the others' own messages do
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a number, neither infinite nor .nan",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list, such as [1, 2]",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "string_pattern_mismatch": "a name of letters, digits and . = + - _, which begins with a letter or digit",
}
WORDS = {"Input should": "it should", "greater than or equal to": "at least", "less than or equal to": "at most"}
WORDS |= {"greater than": "more than", "List should have": "it should have", "String should have": "it should have"}
WORDS |= {" after validation, not": ", not"}


def _in_words(kind: str, message: str) -> str:
    if kind in KINDS:
        return f"it should be {KINDS[kind]}"
    message = message.removeprefix("Value error, ")
    for theirs, ours in WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _read(path: Path) -> Any:
    try:
        return YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this from the folder that holds params.yaml") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no such date or number
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _keys_beside(section: Any, location: tuple[int | str, ...]) -> list[str]:
    for part in location[:-1]:
        section = section.model_fields[part].annotation if part in getattr(section, "model_fields", {}) else Study
    return list(section.model_fields)

"""The methods of pretraining: one file a method, and here what chooses one by `method` in params.yaml, with its settings.

`simsiam.methods.method` says what one is. The training loop, the stages and the analysis know no more of it than that.
"""

from typing import Any

from simsiam.errors import UserError
from simsiam.images import ImageSet
from simsiam.methods.every import METHODS
from simsiam.methods.method import Method
from simsiam.networks import FIRST_KERNEL, Encoder
from simsiam.settings import EncoderSettings, Model, Params, Recipes, checked
from simsiam.whitening import whitening


def options(params: Params, classes: int = 1) -> Any:
    """The chosen method's own settings, checked. Raises UserError for an unknown method, and for what is wrong with them.

    classes: how many the images have, where they are known.
    """
    name = params.method
    if name not in METHODS:
        raise UserError(f"params.yaml: method is {name!r}: it should be one of {', '.join(METHODS)}")
    if not params.stop_gradient and "stop_gradient" not in METHODS[name].Options.model_fields:
        raise UserError(f"params.yaml: stop_gradient is false, but {name} has no stop-gradient to leave out")
    return _options(params, params.recipe, name, classes)


def check_all(params: Params) -> None:
    """Raises UserError for what is wrong with any method's settings in any recipe, or with the choice of one."""
    for recipe in Recipes.model_fields:
        for name in getattr(params.recipes, recipe).methods:
            if name not in METHODS:
                raise UserError(f"params.yaml: unknown key recipes.{recipe}.methods.{name}: there are {', '.join(METHODS)}")
            _options(params, recipe, name)
    options(params)


def _options(params: Params, recipe: str, name: str, classes: int = 1) -> Any:
    place, content = f"recipes.{recipe}.methods.{name}.", getattr(params.recipes, recipe).methods.get(name, {})
    wanted = METHODS[name].Options
    known = {"stop_gradient": params.stop_gradient, "classes": classes}
    if misplaced := known.keys() & content:
        raise UserError(f"params.yaml: unknown key {place}{misplaced.pop()}: it is no setting of the method's own")
    content = content | {key: value for key, value in known.items() if key in wanted.model_fields}
    return checked(wanted, content, "params.yaml", place)


def build(params: Params, images: ImageSet, model: Model | None = None) -> Method:
    """The chosen method on a new encoder, for these images. model: another network than the recipe's.

    Raises UserError where it learns from labels, and the images have none.
    """
    own = options(params, len(images.classes) or 1)
    method = METHODS[params.method]
    if method.labelled and not images.labelled:
        raise UserError(f"params.yaml: method is {params.method}, which learns from labels, and these images have none")
    model = model or params.chosen.model
    mean, std = images.normalisation if model.normalisation == "data" else ((0.5,) * 3, (0.5,) * 3)
    filters = whitening(images.x_pretrain, mean, std, FIRST_KERNEL[model.stem]) if model.first_filters == "whitening" else ()
    own_model = dict(model) | {"latent_dim": params.latent_dim, "seed": params.seed}
    if model.latent_norm is None:
        own_model["latent_norm"] = method.latent_norm
    settings = EncoderSettings(**own_model, mean=mean, std=std, filters=filters)
    return method(Encoder(settings), own)

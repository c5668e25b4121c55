"""The methods of pretraining, by the name that `method` in params.yaml gives them: one file a method.

A method is a module made of an encoder. It has

    Options          a `Section`: the settings that are its alone, from recipes.<recipe>.methods.<name>; a field
                     `stop_gradient` is the one at the top of params.yaml
    encoder, options what it is made of
    views            how many random views of each image it wants
    lowest_loss      what its loss is where all views agree, if that tells views that are too alike; else None
    constant_lr      a part of it whose learning rate stays at the peak, or None
    __init__(encoder, options)
    forward(*views)  -> (loss, latents): views (N, 3, S, S), the scalar loss, and the first view's latents (N, d) without
                     gradient, by which a collapse is noticed

The training loop, the stages and the analysis know no more of it than that.
"""

from typing import Any

from simsiam.errors import UserError
from simsiam.methods.simsiam import SimSiam
from simsiam.networks import Encoder
from simsiam.settings import EncoderSettings, Model, Params, Recipes, checked

METHODS: dict[str, Any] = {"simsiam": SimSiam}


def options(params: Params) -> Any:
    """The chosen method's own settings, checked. Raises UserError for an unknown method, and for what is wrong with them."""
    name = params.method
    if name not in METHODS:
        raise UserError(f"params.yaml: method is {name!r}: it should be one of {', '.join(METHODS)}")
    if not params.stop_gradient and "stop_gradient" not in METHODS[name].Options.model_fields:
        raise UserError(f"params.yaml: stop_gradient is false, but {name} has no stop-gradient to leave out")
    return _options(params, params.recipe, name)


def check_all(params: Params) -> None:
    """Raises UserError for what is wrong with any method's settings in any recipe, or with the choice of one."""
    for recipe in Recipes.model_fields:
        for name in getattr(params.recipes, recipe).methods:
            if name not in METHODS:
                raise UserError(f"params.yaml: unknown key recipes.{recipe}.methods.{name}: there are {', '.join(METHODS)}")
            _options(params, recipe, name)
    options(params)


def _options(params: Params, recipe: str, name: str) -> Any:
    content = dict(getattr(params.recipes, recipe).methods.get(name, {}))
    if "stop_gradient" in METHODS[name].Options.model_fields:
        content["stop_gradient"] = params.stop_gradient
    return checked(METHODS[name].Options, content, "params.yaml", f"recipes.{recipe}.methods.{name}.")


def build(params: Params, normalisation: tuple[tuple[float, ...], tuple[float, ...]], model: Model | None = None) -> Any:
    """The chosen method on a new encoder. normalisation: mean and deviation of the images' channels.

    model: another network than the recipe's.
    """
    model = model or params.chosen.model
    mean, std = normalisation if model.normalisation == "data" else ((0.5,) * 3, (0.5,) * 3)
    settings = EncoderSettings(**dict(model), latent_dim=params.latent_dim, seed=params.seed, mean=mean, std=std)
    return METHODS[params.method](Encoder(settings), options(params))

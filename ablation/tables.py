"""The study's tables: results of the grid's points in, data frames out; every number is a fraction of 1 or as measured."""

from typing import Any

import numpy as np
import pandas as pd

# Column prefix -> name in the metrics of linear_eval, where "random" is the random encoder's backbone.
SPACES = {"latent": "latent", "backbone": "backbone", "random_backbone": "random", "random_latent": "random_latent"}
MASS_NETWORKS = {  # name in the metrics of shap_mass -> in words
    "frozen": "frozen",
    "finetuned": "fine-tuned",
    "random": "random encoder",
    "stock": "frozen, ReLUs used twice",
}
QUADRANTS = ("top_left", "top_right", "bottom_left", "bottom_right")
Result = dict[str, Any]  # one of ablation/results/<recipe>/*.json


def points_table(results: list[Result]) -> pd.DataFrame:
    """One row a training: what it is, and all that was measured of its encoder."""
    rows = []
    for result in results:
        trained, machine = result["pretrain"], result["pretrain"]["trained"][0]
        row: dict[str, Any] = dict(result["point"])
        for space, name in SPACES.items():
            row |= {f"{space}_{score}": result["linear_eval"][name][score] for score in ("top1", "top5")}
        row |= {f"finetuned_{score}": result["finetune"][score] for score in ("top1", "top5")}
        row |= {f"finetuned_backbone_{score}": result["finetunings"]["backbone"][score] for score in ("top1", "top5")}
        row |= {f"{column(space)}_knn": value for space, value in result["embed"]["knn"].items()}
        row |= {"z_std": result["embed"]["collapse"]["z_std"], "loss": trained["loss"]}
        row |= {f"{column(space)}_rankme": value for space, value in result["embed"]["rankme"].items()}
        for space in ("latent", "backbone", "random", "finetuned"):
            row |= {f"{column(space)}_{name}": result["project"][space][name] for name in ("silhouette", "pca_variance_2")}
        for share, scores in result["linear_eval"]["few_labels"].items():
            row |= {f"{column(space)}_top1_{share}": value for space, value in scores.items()}
        row |= {
            "epochs": trained["epochs"],
            "seconds": trained["seconds"],
            "finetuned_seconds": result["finetune"]["seconds"],
        }
        row |= {name: machine[name] for name in ("precision", "device")}
        row["finetuned_device"] = result["finetune"]["trained"][0]["device"]
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.sort_values(["stop_gradient", "latent_dim", "seed"], ascending=[False, True, True], ignore_index=True)


def column(space: str) -> str:
    """The prefix of a space's columns."""
    return "random_backbone" if space == "random" else space


def table_1(points: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The report's Table 1: latent dimension x frozen or fine-tuned, with stop-gradient."""
    return _beside_published(points[points["stop_gradient"]], published[published["table"] == "1"])


def table_2(points: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The report's Table 2: stop-gradient x frozen or fine-tuned, at the dimensions that were trained both ways."""
    both = set(points.loc[~points["stop_gradient"], "latent_dim"]) & set(points.loc[points["stop_gradient"], "latent_dim"])
    return _beside_published(points[points["latent_dim"].isin(both)], published[published["table"] == "2"])


def _beside_published(points: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation over seeds of the top-1 and top-5 read from the latent; controls; what the report has.

    backbone_top1 is the same with the linear layer on the backbone; random_latent_top1, beside a frozen encoder, is the
    linear evaluation of a random encoder's latent. seconds: of pretraining beside a frozen encoder, of fine-tuning beside a
    fine-tuned one. Empty where there are no points.
    """
    if points.empty:
        return pd.DataFrame()
    rows = []
    for (stop_gradient, latent_dim), group in points.groupby(["stop_gradient", "latent_dim"]):
        for encoder, space, backbone in (
            ("frozen", "latent", "backbone"),
            ("fine-tuned", "finetuned", "finetuned_backbone"),
        ):
            row: dict[str, Any] = {"latent_dim": latent_dim, "encoder": encoder, "stop_gradient": stop_gradient}
            columns = {"top1": f"{space}_top1", "top5": f"{space}_top5", "backbone_top1": f"{backbone}_top1"}
            if encoder == "frozen":
                columns["random_latent_top1"] = "random_latent_top1"
            for name, measured in columns.items():
                row |= {name: group[measured].mean(), f"{name}_sd": group[measured].std()}
            row |= {"seeds": len(group), "epochs": group["epochs"].iloc[0]}
            prefix = "" if encoder == "frozen" else "finetuned_"
            row |= {"seconds": group[f"{prefix}seconds"].mean(), "seconds_sd": group[f"{prefix}seconds"].std()}
            row["device"] = ", ".join(sorted(set(group[f"{prefix}device"])))
            rows.append(row)
    ours = pd.DataFrame(rows)
    theirs = published.assign(encoder=published["frozen"].map({True: "frozen", False: "fine-tuned"}))
    theirs = theirs.rename(columns={name: f"published_{name}" for name in ("top1", "top5", "epochs")})
    keys = ["latent_dim", "encoder", "stop_gradient"]
    table = ours.merge(theirs[[*keys, "published_top1", "published_top5", "published_epochs"]], "left", keys)
    return table.sort_values(["latent_dim", "stop_gradient", "encoder"], ascending=False, ignore_index=True)


def few_labels_table(results: list[Result]) -> pd.DataFrame:
    """Top-1 by the number of labels: linear on the backbone and latent, and fine-tuned, each beside a random encoder.

    Means and deviations over seeds, of the points that were fine-tuned on few labels.
    """
    rows = []
    for result in results:
        linear = result["linear_eval"]
        for share, tuned in result["finetunings"]["few_labels"].items():
            every = {space: linear[space]["top1"] for space in ("backbone", "latent", "random")}
            probes = every if share == "100%" else linear["few_labels"].get(share, {})
            row = {"latent_dim": result["point"]["latent_dim"], "labels": tuned["images"]}
            row |= {column(space): value for space, value in probes.items()}
            rows.append(row | {"finetuned": tuned["pretrained"], "finetuned_random": tuned["random"]})
    if not rows:
        return pd.DataFrame()
    points = pd.DataFrame(rows).groupby(["latent_dim", "labels"])
    return points.mean().join(points.std().add_suffix("_sd")).reset_index()


def shap_mass_table(results: list[Result]) -> pd.DataFrame:
    """Where in the image the SHAP mass lies, a row for each network of each point that was measured.

    Of each quadrant its share, and the mean distance from the middle in pixels, with half of the 95 % interval over the
    images; the residual is how far the values are from adding up to the logits.
    """
    rows = []
    for result in results:
        measured, point = result["shap_mass"], result["point"]
        for network, name in MASS_NETWORKS.items():
            if network in measured:
                found = measured[network]
                row = {"latent_dim": point["latent_dim"], "stop_gradient": point["stop_gradient"], "seed": point["seed"]}
                row |= {"network": name, "images": measured["images"], "background": measured["background"]}
                for place, share in zip(QUADRANTS, found["quadrants"], strict=True):
                    row |= {place: share["mean"], f"{place}_ci": share["half_width"]}
                row |= {"radius": found["radius"]["mean"], "radius_ci": found["radius"]["half_width"]}
                rows.append(row | {"residual": found["residual"]})
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; accuracies in per cent."""
    cells = shown(table)
    cells = cells.replace(r"\|", "/", regex=True)
    lines = [list(cells.columns), ["---"] * len(cells.columns), *cells.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def html(table: pd.DataFrame) -> str:
    """A table in HTML; accuracies in per cent."""
    return shown(table).to_html(index=False, border=0, classes="study")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it: texts, shares in per cent with their deviation or interval, and words for names."""
    texts = pd.DataFrame(index=table.index)
    for name in table:
        if not name.endswith(("_sd", "_ci")):
            unsure = table.get(f"{name}_sd", table.get(f"{name}_ci", pd.Series(float("nan"), table.index)))
            texts[NAMES.get(name, name.replace("_", " "))] = [
                cell(name, value, deviation) for value, deviation in zip(table[name], unsure, strict=True)
            ]
    return texts


def cell(name: str, value: Any, deviation: float) -> str:
    """One value of the column `name` as text."""
    if pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if name == "residual":
        return f"{value:.0e}"
    scale, places = (1, 0) if name in ("seconds", "labels", "published_epochs") else (1, 1) if name == "radius" else (100, 1)
    return f"{scale * value:.{places}f}" + ("" if pd.isna(deviation) else f" ± {scale * deviation:.{places}f}")


NAMES = {
    "latent_dim": "d",
    "stop_gradient": "stop-gradient",
    "top1": "top-1",
    "top5": "top-5",
    "backbone_top1": "top-1 on the backbone",
    "random_latent_top1": "top-1, random encoder's latent",
    "seconds": "seconds of training",
    "published_top1": "report's top-1",
    "published_top5": "report's top-5",
    "published_epochs": "report's epochs",
    "backbone": "linear on backbone",
    "latent": "linear on latent",
    "random_backbone": "linear on random encoder's backbone",
    "finetuned": "fine-tuned",
    "finetuned_random": "the same from a random encoder",
    "radius": "distance from the middle, pixels",
}

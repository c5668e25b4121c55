"""The study's tables: results of the grid's points in, data frames out; every number is a fraction of 1 or as measured."""

from typing import Any

import numpy as np
import pandas as pd

# Column prefix -> name in the metrics of linear_eval, where "random" is the random encoder's backbone.
SPACES = {"latent": "latent", "backbone": "backbone", "random_backbone": "random", "random_latent": "random_latent"}
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
            for score in ("top1", "top5"):
                row |= {score: group[f"{space}_{score}"].mean(), f"{score}_sd": group[f"{space}_{score}"].std()}
            row["backbone_top1"] = group[f"{backbone}_top1"].mean()
            if encoder == "frozen":
                row["random_latent_top1"] = group["random_latent_top1"].mean()
            row |= {"seeds": len(group), "epochs": group["epochs"].iloc[0]}
            row["seconds"] = group["seconds" if encoder == "frozen" else "finetuned_seconds"].mean()
            row["device"] = ", ".join(sorted(set(group["device"])))
            rows.append(row)
    ours = pd.DataFrame(rows)
    theirs = published.assign(encoder=published["frozen"].map({True: "frozen", False: "fine-tuned"}))
    theirs = theirs.rename(columns={name: f"published_{name}" for name in ("top1", "top5", "epochs")})
    keys = ["latent_dim", "encoder", "stop_gradient"]
    table = ours.merge(theirs[[*keys, "published_top1", "published_top5", "published_epochs"]], "left", keys)
    return table.sort_values(["latent_dim", "stop_gradient", "encoder"], ascending=False, ignore_index=True)


def few_labels_table(results: list[Result]) -> pd.DataFrame:
    """Top-1 by the number of labels: linear on the backbone and latent, and fine-tuned, each beside a random encoder.

    Means over seeds, of the points that were fine-tuned on few labels.
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
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.groupby(["latent_dim", "labels"], as_index=False).mean()


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
    """The table as people read it: texts, accuracies in per cent with their deviation, and words for names."""
    texts = pd.DataFrame(index=table.index)
    for name in table:
        if not name.endswith("_sd"):
            deviations = table.get(f"{name}_sd", pd.Series(float("nan"), table.index))
            texts[NAMES.get(name, name)] = [
                cell(name, value, deviation) for value, deviation in zip(table[name], deviations, strict=True)
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
    if name in ("seconds", "labels", "published_epochs"):
        return f"{value:.0f}"
    return f"{100 * value:.1f}" + ("" if pd.isna(deviation) else f" ± {100 * deviation:.1f}")


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
}

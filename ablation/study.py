"""The report's tables, figures and claims from what the grid's points found: python -m ablation.study"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from ablation.claims import all_claims
from ablation.figures import (
    accuracy_figure,
    collapse_figure,
    few_labels_figure,
    figure_1,
    figure_2,
    figure_3,
    spectra_figure,
)
from ablation.tables import few_labels_table, html, markdown, points_table, table_1, table_2
from simsiam.errors import UserError
from simsiam.files import read_json, read_npz, write_json, write_text
from simsiam.params import Params
from simsiam.plots import save
from simsiam.report import published
from stages.common import main

SHAP_DIMS = (8, 32, 128)  # of the report's Figure 3


def study(params: Params, root: Path) -> None:
    """Write reports/study/<recipe>/: tables as CSV, Markdown and HTML, figures, and claims.json; and the claims' numbers.

    It reads every file of ablation/results/<recipe>/, and draws what these points allow: figure 1 needs d = 2, figure 3
    one of the report's 8, 32 and 128.
    """
    folder = root / "reports/study" / params.recipe
    paths = sorted((root / "ablation/results" / params.recipe).glob("*.json"))
    if not paths:
        raise UserError(f"there are no results of recipe {params.recipe}: `dvc repro ablation/dvc.yaml` makes them")
    results = [read_json(path) for path in paths]
    points = points_table(results)
    tables = {"table_1": table_1(points, published()), "table_2": table_2(points, published()), "points": points}
    if not (few := few_labels_table(results)).empty:
        tables["few_labels"] = few
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.round(6).to_csv(index=False))
        if name != "points":
            write_text(folder / f"{name}.md", markdown(table))
            write_text(folder / f"{name}.html", html(table))

    drawn: dict[str, Figure] = {"accuracy": accuracy_figure(points), "spectra": spectra_figure(results)}
    trained = {
        result["point"]["latent_dim"]: (result, read_npz(path.with_suffix(".npz")))
        for result, path in reversed(list(zip(results, paths, strict=True)))  # of several seeds the first one stays
        if result["point"]["stop_gradient"]
    }
    if 2 in trained:
        drawn["figure_1"] = figure_1(trained[2][1])
    if trained:
        drawn["figure_2"] = figure_2(trained[max(trained)][1], trained[max(trained)][0])
    if explained := [trained[dim] for dim in SHAP_DIMS if dim in trained]:
        drawn["figure_3"] = figure_3(explained)
    if not points["stop_gradient"].all():
        drawn["collapse"] = collapse_figure(results)
    if "few_labels" in tables:
        drawn["few_labels"] = few_labels_figure(few)
    for name, figure in drawn.items():
        save(folder / f"{name}.png", figure)

    claims = all_claims(points, results)
    write_json(folder / "claims.json", claims)
    name = f"study_{params.recipe}"
    summary = {claim["name"]: {"value": claim["value"], "verdict": claim["verdict"]} for claim in claims}
    write_json(root / f"reports/metrics/{name}.json", {name: summary})
    for claim in claims:
        print(f"{claim['verdict']:15} {claim['claim']} {claim['finding']}", file=sys.stderr)


if __name__ == "__main__":
    main(study)

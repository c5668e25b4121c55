"""The report's tables, figures and claims from what the grid's points found: python -m ablation.study"""

import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from ablation.claims import all_claims
from ablation.collect import point_name
from ablation.figures import (
    Point,
    accuracy_figure,
    collapse_figure,
    few_labels_figure,
    figure_2,
    figure_3,
    maps,
    spectra_figure,
)
from ablation.tables import few_labels_table, html, markdown, points_table, shap_mass_table, table_1, table_2
from simsiam.errors import UserError
from simsiam.files import read_json, read_npz, write_json, write_text
from simsiam.params import Ablation, Params
from simsiam.plots import plane_figure, save
from simsiam.report import published
from stages.common import main

SHAP_DIMS = (8, 32, 128)  # of the report's Figure 3


def study(params: Params, root: Path) -> None:
    """Write reports/study/<recipe>/: tables as CSV, Markdown and HTML, figures, and study.json with the claims; and the
    verdicts as metrics.

    It draws what the points allow: figure 1 needs d = 2, figure 3 one of the report's 8, 32 and 128.
    """
    folder = root / "reports/study" / params.recipe
    found = read_points(params, root)
    results = [result for result, _ in found]
    points = points_table(results)
    tables = {
        "table_1": table_1(points, published()),
        "table_2": table_2(points, published()),
        "few_labels": few_labels_table(results),
        "shap_mass": shap_mass_table(results),
    }
    tables = {name: table for name, table in tables.items() if not table.empty}
    drawn: dict[str, tuple[Figure, list[Point]]] = {}
    first = list({order(**point[0]["point"])[:2]: point for point in reversed(found)}.values())[::-1]  # seed of each
    by_dim = {
        result["point"]["latent_dim"]: (result, arrays) for result, arrays in first if result["point"]["stop_gradient"]
    }
    without = {result["point"]["latent_dim"] for result in results if not result["point"]["stop_gradient"]}
    drawn["spectra"] = spectra_figure(first), first
    if by_dim:
        drawn["accuracy"] = accuracy_figure(points), found
        drawn["figure_2"] = figure_2(by_dim[max(by_dim)]), [by_dim[max(by_dim)]]
    if 2 in by_dim:
        drawn["figure_1"] = plane_figure(maps(by_dim[2][1])), [by_dim[2]]
    if explained := [by_dim[dim] for dim in SHAP_DIMS if dim in by_dim]:
        drawn["figure_3"] = figure_3(explained), explained
    if without:
        drawn["collapse"] = collapse_figure(first), [point for point in first if point[0]["point"]["latent_dim"] in without]
    if "few_labels" in tables:
        used = [point for point in found if point[0]["finetunings"]["few_labels"]]
        drawn["few_labels"] = few_labels_figure(tables["few_labels"]), used

    claims = all_claims(points, results, whole_grid(params), collapsed_z_std(params))
    commands = {"all": whole_grid(params)}
    commands |= {name: command(used, commands["all"], len(found)) for name, (_, used) in drawn.items()}
    both_ways = [point for point in found if point[0]["point"]["latent_dim"] in without]
    commands["table_1"] = commands["all"]
    if "shap_mass" in tables:
        commands["shap_mass"] = command([p for p in found if "frozen" in p[0]["shap_mass"]], commands["all"], len(found))
    if both_ways:
        commands["table_2"] = command(both_ways, commands["all"], len(found))

    write_text(folder / "points.csv", points.round(6).to_csv(index=False))
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.round(6).to_csv(index=False))
        write_text(folder / f"{name}.md", markdown(table))
        write_text(folder / f"{name}.html", html(table))
    for name, (figure, _) in drawn.items():
        save(folder / f"{name}.png", figure)
    write_json(folder / "study.json", {"recipe": params.recipe, "claims": claims, "commands": commands})
    for old in folder.glob("*.*"):  # of a grid with other points
        if old.stem not in {"points", "study", *tables, *drawn}:
            old.unlink()
    name = f"study_{params.recipe}"
    write_json(root / f"reports/metrics/{name}.json", {name: {claim["name"]: claim["verdict"] for claim in claims}})
    for claim in claims:
        print(f"{claim['verdict']:15} {claim['claim']} {claim['finding']}", file=sys.stderr)


def read_points(params: Params, root: Path) -> list[Point]:
    """What the grid's points of the recipe left, by dimension and seed, those without stop-gradient last.

    Of a recipe that is not in the grid, all that is there. Missing points are named on stderr. Raises UserError when there
    are none.
    """
    folder, grid = root / "ablation/results" / params.recipe, params.ablation
    wanted: Iterable[str] = [path.stem for path in folder.glob("*.json")]
    if params.recipe in grid.recipe:
        wanted = [point_name(*point) for point in grid_points(grid)]
    points, missing = [], []
    for name in wanted:
        if all((folder / f"{name}.{ending}").exists() for ending in ("json", "npz")):
            points.append(read_point(folder, name))
        else:
            missing.append(name)
    if missing:
        print(f"study: without {', '.join(missing)}, of which there are no results", file=sys.stderr)
    if not points:
        raise UserError(f"there are no results of recipe {params.recipe}: `{whole_grid(params)}` makes them")
    return sorted(points, key=lambda point: order(**point[0]["point"]))


def read_point(folder: Path, name: str) -> Point:
    """What a point left. Raises UserError where it is damaged, of another point, or of another version of the code."""
    try:
        result, arrays = read_json(folder / f"{name}.json"), read_npz(folder / f"{name}.npz")
        points_table([result])
        point = result["point"]
        own = (
            point["recipe"] == folder.name and point_name(point["latent_dim"], point["stop_gradient"], point["seed"]) == name
        )
        good = own and {"curve_step", "maps_label", "shap_images"} <= set(arrays)
    except (UserError, KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise UserError(
            f"{folder / name}.json or .npz is damaged, of another point or of an older version: "
            f"`git checkout {folder / name}.*` or `dvc repro ablation/dvc.yaml` brings it back"
        )
    return result, arrays


def grid_points(grid: Ablation) -> list[tuple[int, bool, int]]:
    """Latent dimension, stop-gradient and seed of every point of a recipe, each once."""
    dims = [(dim, True) for dim in grid.latent_dim] + [(dim, False) for dim in grid.without_stop_gradient]
    return list(dict.fromkeys((*dim, seed) for dim in dims for seed in grid.seed))


def target(recipe: str, latent_dim: int, stop_gradient: bool, seed: int) -> str:
    """DVC's name of the stage that a point ends with."""
    stage = "collect" if stop_gradient else "collect_without"
    return f"ablation/dvc.yaml:{stage}@{recipe}-{point_name(latent_dim, stop_gradient, seed)}"


def collapsed_z_std(params: Params) -> float:
    """What BatchNorm on the latent, where the recipe has it, leaves of z_std when all latents have collapsed."""
    return 2 / params.chosen.pretrain.batch_size**0.5 if params.chosen.model.latent_norm else 0.0


def whole_grid(params: Params) -> str:
    """The command that runs every point of the recipe, and draws the study."""
    if params.recipe in params.ablation.recipe:
        return "dvc repro ablation/dvc.yaml"
    return f"dvc exp run ablation/dvc.yaml -S 'ablation.recipe=[{params.recipe}]'"


def order(latent_dim: int, stop_gradient: bool, seed: int, **_: str) -> tuple[bool, int, int]:
    """The points without stop-gradient last, the others by dimension, then by seed."""
    return not stop_gradient, latent_dim, seed


def command(used: list[Point], everything: str, count: int) -> str:
    """The command that runs these points of the grid, and draws them."""
    if len(used) == count or not everything.startswith("dvc repro"):
        return everything
    names = [target(**result["point"]) for result, _ in used]
    return f"dvc repro {' '.join(names)} && python -m ablation.study recipe={used[0][0]['point']['recipe']}"


if __name__ == "__main__":
    main(study)

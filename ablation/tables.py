"""Data frames -> the tables that people read, and a study's folder."""

import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablation.results import Found
from simsiam.errors import UserError
from simsiam.files import read_json, write_json, write_text
from simsiam.plots import draw

BY = "ablation.study"  # in study.json: whose the folder is
EVERYTHING = "dvc repro ablation/dvc.yaml"
COMMANDS = {"all points of all studies": EVERYTHING, "tables and figures again": "python -m ablation.study"}


class Column(NamedTuple):
    """How a column is shown: below which heading, called what; its numbers times `scale`, in which format."""

    heading: str
    title: str
    scale: float = 1
    form: str = ".3f"


class Table(NamedTuple):
    frame: pd.DataFrame  # NAME_sd, where there is one, is the deviation of NAME
    columns: dict[str, Column]  # that are shown
    caption: str


class Picture(NamedTuple):
    figure: Callable[..., Figure]
    content: tuple[object, ...]  # that it is drawn of
    caption: str


def means(found: Sequence[Found], key: str, name: str = "") -> dict[str, float]:
    """The cells NAME and NAME_sd, or of the key itself: mean and deviation over seeds, of those that have the number."""
    values, name = [each.numbers[key] for each in found if key in each.numbers], name or key
    if not values:
        return {}
    return {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else np.nan}


def shown(table: Table) -> pd.DataFrame:
    """The table as texts; each column has a heading and a title."""
    frame, texts = table.frame, {}
    for name, column in table.columns.items():
        if name in frame and frame[name].notna().any():
            unsure = frame.get(f"{name}_sd", pd.Series(np.nan, frame.index))
            texts[column.heading, column.title] = [cell(*each, column) for each in zip(frame[name], unsure, strict=True)]
    return pd.DataFrame(texts)


def cell(value: Any, deviation: float, column: Column) -> str:
    """One value as text."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if pd.isna(value) or not isinstance(value, float):
        return "–" if pd.isna(value) else str(value)
    texts = [format(column.scale * number, column.form) for number in (value, deviation) if not pd.isna(number)]
    return " ± ".join(texts)


def markdown(table: Table) -> str:
    """A table in Markdown."""
    cells = shown(table).replace(r"\|", "/", regex=True)
    titles = [": ".join(filter(None, column)) for column in cells]
    lines = [titles, ["---"] * len(titles), *cells.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def html(table: Table) -> str:
    """A table in HTML."""
    return shown(table).to_html(index=False, border=0, classes="study")


def note_of_machines(used: Sequence[Found]) -> str:
    """Which points were made where, if not all on one kind of machine with one torch and as many threads, or "".

    Those of the machine that made most are not listed.
    """
    made: dict[str, list[str]] = {}
    for each in used:
        made.setdefault(each.machine, []).append(f"{each.point}, seed {each.seed}")
    if len(made) < 2:
        return ""
    first, *others = sorted(made, key=lambda machine: -len(made[machine]))
    words = "; ".join(f"{machine}: {', '.join(made[machine])}" for machine in others) + f"; the others: {first}"
    differ = (
        "Its points were not all made on one machine with as many threads, so they differ by rounding and in seconds too."
    )
    return f"{differ} {words}."


def remove_others(root: Path, names: Sequence[str]) -> None:
    """Delete the studies that were written here under a name that is none of these: params.yaml has them no more, or they
    have no results any more.
    """
    for path in (root / "reports/study").glob("*/study.json"):
        with suppress(UserError, AttributeError):  # what cannot be read was not written here
            if path.parent.name not in names and read_json(path).get("by") == BY:
                shutil.rmtree(path.parent)
                (root / f"reports/metrics/study_{path.parent.name}.json").unlink(missing_ok=True)
                print(f"study {path.parent.name}: deleted: no study of that name has results", file=sys.stderr)


def write(
    root: Path,
    name: str,
    used: Sequence[Found],
    tables: dict[str, Table],
    pictures: dict[str, Picture],
    *,
    commands: dict[str, str] = COMMANDS,
    missing: Sequence[str] = (),
    claims: Sequence[dict[str, str]] = (),
    about: str = "",
) -> None:
    """Write reports/study/<name>/: tables as CSV, Markdown and HTML, figures as PNG, and what the page says in study.json.

    The old folder, where there is one, gives way once all of it is written, and stays where that fails. The claims' verdicts
    are metrics, too, and told on stderr, and so is where the results were made, if not all on one machine.
    """
    folder = root / "reports/study" / name
    scratch = folder.parent.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
    old = scratch.with_suffix(".old")
    try:
        for stem, table in tables.items():
            write_text(scratch / f"{stem}.csv", table.frame.to_csv(index=False, float_format="%.6g"))
            write_text(scratch / f"{stem}.md", markdown(table))
            write_text(scratch / f"{stem}.html", html(table))
        for stem, picture in pictures.items():
            draw(scratch / f"{stem}.png", picture.figure, *picture.content)
        if note := note_of_machines(used):
            print(f"study {name}: {note}", file=sys.stderr)
        page = {
            "name": name,
            "about": about,
            "missing": list(missing),
            "stale": [f"{each.point}, seed {each.seed}: other {each.stale}" for each in used if each.stale],
            "note": note,
            "by": BY,
            "commands": commands,
            "tables": {stem: table.caption for stem, table in tables.items()},
            "figures": {stem: picture.caption for stem, picture in pictures.items()},
            "claims": list(claims),
        }
        write_json(scratch / "study.json", page)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        if claims:
            verdicts = {claim["name"]: claim["verdict"] for claim in claims}
            write_json(root / f"reports/metrics/study_{name}.json", {f"study_{name}": verdicts})
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for rest in (scratch, old):
            shutil.rmtree(rest, ignore_errors=True)
    for claim in claims:
        print(f"{': '.join(filter(None, (claim['verdict'], claim['reason'])))}: {claim['claim']}", file=sys.stderr)

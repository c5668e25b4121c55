"""Data frames -> the tables that people read, and a study's folder."""

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simsiam.files import write_json, write_text
from simsiam.plots import draw


@dataclass(frozen=True)
class Column:
    """How a column is shown: below which heading, called what, its numbers times `scale` with so many places."""

    group: str
    title: str
    scale: float = 1
    places: int = 3


Table = tuple[pd.DataFrame, dict[str, Column]]  # and the columns to show; NAME_sd, where there is one, is NAME's deviation
Drawing = tuple[Callable[..., Figure], tuple[object, ...]]  # a figure and what it is drawn of


def means(values: list[float], name: str) -> dict[str, float]:
    """The cells NAME and NAME_sd: mean and deviation over seeds."""
    return {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")}


def shown(table: Table) -> pd.DataFrame:
    """The table as texts; its columns have a heading and a title."""
    frame, columns = table
    texts: dict[tuple[str, str], list[str]] = {}
    for name, column in columns.items():
        if name in frame and frame[name].notna().any():
            unsure = frame.get(f"{name}_sd", pd.Series(np.nan, frame.index))
            texts[column.group, column.title] = [cell(*each, column) for each in zip(frame[name], unsure, strict=True)]
    return pd.DataFrame(texts)


def cell(value: Any, deviation: float, column: Column) -> str:
    """One value as text."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    scale, places = column.scale, column.places
    if places < 0:  # a power of ten says it all
        return f"{value:.0e}"
    return f"{scale * value:.{places}f}" + ("" if pd.isna(deviation) else f" ± {scale * deviation:.{places}f}")


def markdown(table: Table) -> str:
    """A table in Markdown."""
    cells = shown(table).replace(r"\|", "/", regex=True)
    titles = [f"{group}: {title}" if group else title for group, title in cells]
    lines = [titles, ["---"] * len(titles), *cells.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def html(table: Table) -> str:
    """A table in HTML."""
    cells = shown(table)
    if not any(group for group, _ in cells):
        cells.columns = cells.columns.droplevel(0)
    return cells.to_html(index=False, border=0, classes="study")


def write(folder: Path, page: dict[str, Any], tables: dict[str, Table], figures: dict[str, Drawing]) -> None:
    """A study's folder: each table as CSV, Markdown and HTML, each figure as PNG, and `page` as study.json.

    The old folder, if there is one, gives way when all of it is written, and stays where it cannot be.
    """
    scratch = folder.parent.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    old = scratch.with_suffix(".old")
    try:
        for name, table in tables.items():
            write_text(scratch / f"{name}.csv", table[0].round(6).to_csv(index=False))
            write_text(scratch / f"{name}.md", markdown(table))
            write_text(scratch / f"{name}.html", html(table))
        for name, (figure, content) in figures.items():
            draw(scratch / f"{name}.png", figure, *content)
        write_json(scratch / "study.json", page)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        for rest in (scratch, old):
            shutil.rmtree(rest, ignore_errors=True)

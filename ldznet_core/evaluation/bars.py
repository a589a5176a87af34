"""A picture of a table: bars of what was measured here, published scores as lines across them."""

from collections.abc import Sequence

from ..errors import InputError
from ..imaging.figure import COLOURS, Figure
from .markdown import SCORES, percent

DRAWN = ("miou", "iou_fg", "ap")
BAR, GAP, LEFT, RIGHT, TOP, WIDTH = 16, 6, 230, 90, 44, 420
LABEL = 9  # height of the names of published scores
GREY, OURS = "#666666", COLOURS[1]  # lines of others, and of the method that this program implements


def name_of(row: dict) -> str:
    text = f", {row['text']}" if row["text"] and row["method"] == "ldznet" else ""
    return f"{row['method']}{text}{', refined' if row['refined'] else ''}"


def bars(rows: Sequence[dict], scores: Sequence[str] = DRAWN) -> Figure:
    """One panel for each set and score that any row of the set has been measured in. Rows are those that
    `ldznet evaluate` prints. Raises InputError where nothing was measured."""
    panels = []
    for dataset in dict.fromkeys(row["set"] for row in rows):
        here = [row for row in rows if row["set"] == dataset]
        for score in scores:
            measured = [row for row in here if row["seeds"] and row.get(score)]
            published = [row for row in here if not row["seeds"] and row.get(score)]
            if measured:
                panels.append((f"{dataset}: {SCORES[score]}", score, measured, published))
    if not panels:
        raise InputError("there is nothing to draw: no method was measured")
    heights = [TOP + len(measured) * (BAR + GAP) + LABEL * len(published) + 28 for _, _, measured, published in panels]
    figure = Figure(LEFT + WIDTH + RIGHT, sum(heights) + 10)
    y = 0
    for panel, height in zip(panels, heights, strict=True):
        draw_panel(figure, y, *panel)
        y += height
    return figure


def draw_panel(figure: Figure, top: float, title: str, score: str, measured: list[dict], published: list[dict]) -> None:
    """Bars from `top` on, in percent; under them the names of the published lines, a row each."""

    def x_of(row: dict) -> float:
        return LEFT + WIDTH * row[score]["mean"]

    below = top + TOP + len(measured) * (BAR + GAP)
    figure.text(LEFT, top + 16, title, 13)
    for tick in range(0, 101, 20):
        x = LEFT + WIDTH * tick / 100
        figure.line([(x, top + TOP - 4), (x, below)], "#dddddd", 1)
        figure.text(x, top + TOP - 11, str(tick), LABEL, "middle", GREY)
    for number, row in enumerate(measured):
        y = top + TOP + number * (BAR + GAP)
        mean, std = 100 * row[score]["mean"], 100 * row[score]["std"]
        figure.text(LEFT - 8, y + BAR / 2, name_of(row), 11, "end")
        figure.rectangle(LEFT, y, max(1, WIDTH * mean / 100), BAR, COLOURS[0])
        figure.text(LEFT + WIDTH + 12, y + BAR / 2, percent(row[score]), 11)
        if std:
            ends = [LEFT + WIDTH * min(max(value, 0), 100) / 100 for value in (mean - std, mean + std)]
            figure.line([(x, y + BAR / 2) for x in ends], "#000000", 1.5)
    for number, row in enumerate(sorted(published, key=x_of)):
        x, y = x_of(row), below + LABEL * (number + 0.5) + 2
        name = row["method"].removesuffix(" (published)")
        colour = OURS if name == "LD-ZNet" else GREY
        figure.line([(x, top + TOP - 4), (x, y)], colour, 1)
        figure.text(x - 4, y, f"{name} {percent(row[score])}", LABEL, "end", colour)

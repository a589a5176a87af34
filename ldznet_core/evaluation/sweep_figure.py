"""The figure of a sweep: a heat map of blocks and timesteps, and a curve for every grid of positions."""

from collections.abc import Sequence

import numpy as np

from ..imaging.figure import COLOURS, Figure, heat

LEFT, TOP, CELL, HIGH, RIGHT, PLOT = 224, 58, 46, 22, 100, 190
PAPER = (300, 500)  # timesteps that the paper found best on Stable Diffusion 1.4, in its blocks 6 to 10
OUTLINE = "#e4002b"


def draw(numbers: dict, taps: Sequence[str]) -> Figure:
    """The figure of what `sweep.summary` returns. `taps` are the blocks that the paper found best."""
    rows = numbers["rows"]
    timesteps = [*dict.fromkeys(row["timestep"] for row in rows)]
    blocks = [*dict.fromkeys(row["block"] for row in rows)]
    ap = {(row["block"], row["timestep"]): 100 * row["ap"]["mean"] for row in rows}
    places = {row["block"]: row["number"] for row in rows}
    grids = {row["block"]: "{} x {}".format(*row["grid"]) for row in rows}
    low, high = min(ap.values()), max(ap.values())
    bottom = TOP + HIGH * len(blocks)
    figure = Figure(LEFT + CELL * max(len(timesteps), 8) + RIGHT, bottom + PLOT + 118)
    figure.text(16, 20, f"Average precision of masks decoded from one block at one timestep ({title(numbers)})", 14)
    figure.text(16, TOP - 12, "block", colour="#555555")
    figure.text(LEFT - 12, TOP - 12, "positions", anchor="end", colour="#555555")
    for column, timestep in enumerate(timesteps):
        words = str(timestep) if column else f"t={timestep}"
        figure.text(LEFT + CELL * (column + 0.5), TOP - 12, words, anchor="middle")
    for line, block in enumerate(blocks):
        y = TOP + HIGH * line
        figure.text(16, y + HIGH / 2, str(places[block]) if places[block] else "clean latent")
        figure.text(40, y + HIGH / 2, block if places[block] else "")
        figure.text(LEFT - 12, y + HIGH / 2, grids[block], anchor="end")
        for column, timestep in enumerate(timesteps):
            share = (ap[block, timestep] - low) / max(high - low, 1e-9)
            x = LEFT + CELL * column
            figure.rectangle(x, y, CELL, HIGH, heat(share))
            ink = "#ffffff" if share < 0.5 else "#000000"
            figure.text(x + CELL / 2, y + HIGH / 2, f"{ap[block, timestep]:.1f}", 11, "middle", ink)
    lines = [line for line, block in enumerate(blocks) if block in taps]
    columns = [column for column, timestep in enumerate(timesteps) if PAPER[0] <= timestep <= PAPER[1]]
    if lines and columns:
        width, height = CELL * len(columns), HIGH * (lines[-1] - lines[0] + 1)
        figure.rectangle(LEFT + CELL * columns[0], TOP + HIGH * lines[0], width, height, None, OUTLINE, 2.5)
        words = "outlined: where the paper found the best features of Stable Diffusion 1.4"
        figure.text(LEFT, bottom + 16, words, 11, colour=OUTLINE)
    scale(figure, LEFT + CELL * len(timesteps) + 24, low, high, HIGH * len(blocks))
    curves(figure, bottom + 62, timesteps, ap, {b: g for b, g in grids.items() if places[b]})
    return figure


def title(numbers: dict) -> str:
    seeds = numbers["swept"]["seeds"]
    return f"percent, mean of {seeds} seeds" if seeds > 1 else "percent, one seed"


def scale(figure: Figure, x: float, low: float, high: float, height: float) -> None:
    steps = 48
    for i in range(steps):
        y = TOP + height * i / steps
        figure.rectangle(x, y, 14, TOP + height - y, heat(1 - (i + 0.5) / steps))  # overlapping, so without seams
    for share in (0, 0.5, 1):
        figure.text(x + 20, TOP + height * (1 - share), f"{low + share * (high - low):.0f}", 11)


def curves(figure: Figure, top: float, timesteps: Sequence[int], ap: dict, grids: dict[str, str]) -> None:
    """The mean of the blocks of each grid over the timesteps."""
    figure.text(16, top - 18, "Mean of the blocks that have as many positions", 14)
    groups = {grid: [b for b in grids if grids[b] == grid] for grid in dict.fromkeys(grids.values())}
    means = {grid: [float(np.mean([ap[b, t] for b in names])) for t in timesteps] for grid, names in groups.items()}
    highest = 10 * np.ceil(max(map(max, means.values())) / 10) or 10
    right = LEFT + CELL * len(timesteps)
    step = 10 if highest <= 60 else 20
    for value in range(0, int(highest) + 1, step):
        y = top + PLOT * (1 - value / highest)
        figure.line([(LEFT, y), (right, y)], "#dddddd", 1)
        figure.text(LEFT - 12, y, str(value), 11, "end")
    for column, timestep in enumerate(timesteps):
        figure.text(LEFT + CELL * (column + 0.5), top + PLOT + 14, str(timestep), 11, "middle")
    figure.text((LEFT + right) / 2, top + PLOT + 34, "timestep", 12, "middle", "#555555")
    free = -1e9  # the labels at the right end keep a line's distance
    colours = dict(zip(means, COLOURS * 9, strict=False))
    for grid, values in sorted(means.items(), key=lambda item: -item[1][-1]):
        colour = colours[grid]
        points = [
            (LEFT + CELL * (column + 0.5), top + PLOT * (1 - value / highest)) for column, value in enumerate(values)
        ]
        if len(points) > 1:
            figure.line(points, colour, 2.5)
        for x, y in points:
            figure.rectangle(x - 3, y - 3, 6, 6, colour)
        free = max(points[-1][1], free + 15)
        figure.text(right - CELL / 2 + 12, free, f"{grid} ({counted(groups[grid])})", 12, colour=colour)


def counted(blocks: Sequence[str]) -> str:
    return "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks"

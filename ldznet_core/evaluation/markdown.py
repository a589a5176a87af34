"""Rows of scores as a Markdown table."""

from collections.abc import Sequence

SCORES = {
    "miou": "mIoU",
    "iou_fg": "IoU_FG",
    "ap": "AP",
    "iou": "IoU (kind not said)",
    "iou_at_default": "IoU at 0.5",
    "native_miou": "native mIoU",
    "native_ciou": "native cIoU",
    "pr50": "Pr@0.5",
    "pr70": "Pr@0.7",
    "pr90": "Pr@0.9",
    "giou": "gIoU",
    "n_acc": "N-acc",
    "t_acc": "T-acc",
    "false_area": "absent: area",
    "gated_area": "gated",
    "presence_auc": "presence",
}
COUNTS = {"samples": "phrases", "seeds": "seeds"}


def markdown(rows: Sequence[dict]) -> list[str]:
    """The lines of a table in percent, mean and standard deviation over training seeds. It has the columns that any of
    the rows fills."""
    scores = [name for name in SCORES if any(row.get(name) is not None for row in rows)]
    head = ["set", "method", "features under", *(SCORES[name] for name in scores), *COUNTS.values()]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        method = f"{row['method']}, refined" if row["refined"] else row["method"]
        counts = (str(row[name] or "-") for name in COUNTS)
        lines.append([row["set"], method, row["text"] or "-", *(percent(row.get(n)) for n in scores), *counts])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def percent(score: dict[str, float] | None) -> str:
    if score is None:
        return "-"
    mean, std = 100 * score["mean"], 100 * score["std"]
    return f"{mean:.1f} ± {std:.1f}" if std else f"{mean:.1f}"

"""`ldznet evaluate`: the paper's scores of decoders on the miniature's evaluation sets, as a table or JSON."""

import argparse
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("miou", "iou_fg", "ap", "iou_at_default", "false_area")
HEAD = (
    "| set | method | features under | mIoU | IoU_FG | AP | IoU at 0.5 | absent: area | seeds |",
    "|---|---|---|---|---|---|---|---|---|",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", type=Path, required=True, help="the world's art, from 'ldznet mini build pack'")
    parser.add_argument("--model", default="mini", help="mini, or a checkpoint built by 'ldznet mini build'")
    parser.add_argument("--decoders", nargs="+", metavar="FILE",
                        help="decoder files; those of one kind are taken as seeds of it (default: the bundled ones)")
    parser.add_argument("--method", action="append", choices=("rgbnet", "znet", "ldznet"),
                        help="evaluate this kind only (may be repeated)")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="evaluate on these sets only")
    parser.add_argument("--scenes", type=int, default=150, help="scenes of two or three things in each set")
    parser.add_argument("--conditions", action="store_true",
                        help="LD-ZNet with features under the phrase, the caption and no text, side by side")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", action="store_true", help="print one JSON line a row (the default)")


def run(args: argparse.Namespace) -> Iterator[dict | str]:
    from ..errors import InputError
    from ..hosts import load_host
    from ..mini import evaluation
    from ..networks.decoder import KINDS
    from ..weights import BUNDLED

    sets = tuple(args.sets or evaluation.SETS)
    for name in sets:
        if name not in evaluation.SETS:
            raise InputError(f"no set {name!r}: choose among {', '.join(repr(s) for s in evaluation.SETS)}")
    files = args.decoders or sorted(BUNDLED.glob("*net.safetensors"))
    decoders = evaluation.by_kind(files, tuple(args.method or KINDS))
    if not decoders:
        raise InputError(f"no decoder of kind {', '.join(args.method or KINDS)} among {len(files)} files")
    texts = ("phrase", "caption", "empty") if args.conditions else ("phrase",)
    rows = evaluation.table(load_host(args.model), decoders, args.pack, sets, args.scenes, texts)
    if args.markdown:
        yield from HEAD
    for row in rows:
        yield markdown(row.as_dict()) if args.markdown else row.as_dict()


def markdown(row: dict) -> str:
    """A row of the table in percent, mean and standard deviation over training seeds."""
    scores = (percent(row[name]) for name in COLUMNS)
    return "| " + " | ".join([row["set"], row["method"], row["text"] or "-", *scores, str(row["seeds"])]) + " |"


def percent(score: dict[str, float]) -> str:
    mean, std = 100 * score["mean"], 100 * score["std"]
    return f"{mean:.1f} ± {std:.1f}" if std else f"{mean:.1f}"

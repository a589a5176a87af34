"""`ldznet evaluate`: the paper's scores on the miniature's evaluation sets, with decoders and without, as a table or
JSON."""

import argparse
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("miou", "iou_fg", "ap", "iou_at_default", "false_area", "gated_area")
HEAD = (
    "| set | method | features under | mIoU | IoU_FG | AP | IoU at 0.5 | absent: area | gated | seeds |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", type=Path, required=True, help="the world's art, from 'ldznet mini build pack'")
    parser.add_argument("--model", default="mini", help="mini, or a checkpoint built by 'ldznet mini build'")
    parser.add_argument("--decoders", nargs="+", metavar="FILE",
                        help="decoder files; those of one kind are taken as seeds of it (default: the bundled ones)")
    parser.add_argument("--method", action="append", choices=("rgbnet", "znet", "ldznet", "attention", "noise"),
                        help="a kind of decoder, or a method that needs none; may be repeated (default: all there are)")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="evaluate on these sets only")
    parser.add_argument("--scenes", type=int, default=150, help="scenes of two or three things in each set")
    parser.add_argument("--conditions", action="store_true",
                        help="LD-ZNet with features under the phrase, the caption and no text, side by side")
    parser.add_argument("--refine", action="store_true",
                        help="beside every method the same masks with the edges of the picture")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", action="store_true", help="print one JSON line a row (the default)")


def run(args: argparse.Namespace) -> Iterator[dict | str]:
    from ..errors import InputError
    from ..hosts import load_host
    from ..mini import evaluation

    sets = tuple(args.sets or evaluation.SETS)
    for name in sets:
        if name not in evaluation.SETS:
            raise InputError(f"no set {name!r}: choose among {', '.join(repr(s) for s in evaluation.SETS)}")
    methods = choose(args)
    rows = evaluation.table(load_host(args.model), methods, args.pack, sets, args.scenes, args.refine)
    if args.markdown:
        yield from HEAD
    for row in rows:
        yield markdown(row.as_dict()) if args.markdown else row.as_dict()


def choose(args: argparse.Namespace) -> list:
    """The methods that were asked for; all there are where none was. Raises InputError where one has no decoder."""
    from ..errors import InputError
    from ..mini.evaluation import by_kind
    from ..mini.predictors import FREE
    from ..networks.decoder import KINDS
    from ..weights import BUNDLED

    files = args.decoders or sorted(BUNDLED.glob("*net.safetensors"))
    wanted = args.method or [*KINDS, *FREE]
    texts = ("phrase", "caption", "empty") if args.conditions else ("phrase",)
    kinds = tuple(name for name in wanted if name in KINDS)
    methods = by_kind(files, kinds, texts) if kinds else []
    lacking = {*kinds} - {method.name for method in methods} if args.method else ()
    if lacking:
        raise InputError(f"no decoder of kind {', '.join(sorted(lacking))} among {len(files)} files")
    return methods + [method for name, free in FREE.items() if name in wanted for method in free]


def markdown(row: dict) -> str:
    """A row of the table in percent, mean and standard deviation over training seeds."""
    scores = (percent(row[name]) for name in COLUMNS)
    method = f"{row['method']}, refined" if row["refined"] else row["method"]
    return "| " + " | ".join([row["set"], method, row["text"] or "-", *scores, str(row["seeds"])]) + " |"


def percent(score: dict[str, float] | None) -> str:
    if score is None:
        return "-"
    mean, std = 100 * score["mean"], 100 * score["std"]
    return f"{mean:.1f} ± {std:.1f}" if std else f"{mean:.1f}"

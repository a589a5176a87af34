"""`ldznet evaluate`: the paper's scores on any data set or on the miniature's own, with decoders and without, beside
published ones; as JSON, a table or a picture."""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from pathlib import Path

from ..checkpoints.bundled import BUNDLED
from ..decoders.registry import DECODERS
from ..errors import BAD_INPUT, DONE, FAULT, InputError
from ..evaluation.published import TABLES
from ..evaluation.rivals import RIVALS, load_rival
from ..segment.base import GRID
from ..segment.methods import METHODS
from .shared import between, check_files, check_folder, choose_device, file_name, progress, refuse

log = logging.getLogger(__name__)
PAPER = 384  # pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Scores masks of phrases against true ones: mIoU, IoU_FG and AP as in the paper (pictures squashed to a "
        "square, the best threshold of 49), and IoU, precision, gIoU and N-acc of masks cut at 0.5, at the pictures' "
        "size. One row a method; decoders of one kind are seeds of it. Memory does not grow with the data."
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", metavar="SPEC", help="KIND:FOLDER, such as folder:/my/masks; see docs/data.md")
    data.add_argument("--pack", type=Path, metavar="FILE",
                      help="the miniature's own sets, from its world's art: that of 'ldznet mini build pack'")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test",
                        help="the part of the data (%(default)s)")
    parser.add_argument("--limit", type=between(1, 10**9), metavar="N", help="the first N phrases of the data only")
    parser.add_argument("--size", type=size, metavar="PIXELS",
                        help="side of the square that pictures are squashed to, a multiple of 64; or 'native', where "
                        f"each keeps its shape (default: what the decoder was trained at, {PAPER} in the paper)")
    parser.add_argument("--table", choices=tuple(TABLES),
                        help="published rows to stand beside (default: those of the data, if there are any)")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="with --pack: these sets only")
    parser.add_argument("--scenes", type=between(1, 10**6), default=150,
                        help="with --pack: scenes of two or three things in each set (%(default)s)")

    methods = parser.add_argument_group("methods")
    methods.add_argument("--model", type=file_name, help="mini, a checkpoint or a diffusers folder (default: mini)")
    methods.add_argument("--decoders", nargs="+", type=file_name, metavar="FILE",
                         help="decoder files; those of one kind are taken as seeds of it (default: the bundled ones)")
    methods.add_argument("--method", action="append", choices=(*DECODERS, *METHODS),
                         help="a kind of decoder, or a method that needs none; may be repeated (default: all)")
    methods.add_argument("--conditions", action="store_true",
                         help="LD-ZNet with features under the phrase, the caption and no text, side by side")
    methods.add_argument("--refine", action="store_true",
                         help="also score the masks of every method after the edge step")
    methods.add_argument("--rival", action="append", metavar="NAME[=MODEL]",
                         help=f"another program, run through transformers on the same pictures: {', '.join(RIVALS)}; "
                         "MODEL is a folder or the hub's name of a model that is on this machine, or two of them "
                         "joined by a comma; may be repeated. With --data and no --model, --decoders or --method, only "
                         "rivals run")
    methods.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda if there, else cpu)")

    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON line a row (the default)")
    output.add_argument("--markdown", action="store_true", help="print a Markdown table when all is done")
    output.add_argument("--picture", type=picture_name, metavar="FILE",
                        help="also draw bars of the scores, published ones as lines: a .png or .svg")


def size(text: str) -> int | str:
    """An argparse type: a multiple of 64, or "native"."""
    if text == "native":
        return text
    if not text.isdigit() or not int(text) or int(text) % GRID:
        raise argparse.ArgumentTypeError(f"{text} is neither a multiple of {GRID} nor 'native'")
    return int(text)


def picture_name(text: str) -> Path:
    """An argparse type: a file that ends in .png or .svg."""
    if not text.lower().endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"{text} ends neither in .png nor in .svg")
    return Path(text)


def run(args: argparse.Namespace) -> Iterator[dict | str]:
    from ..evaluation.bars import bars
    from ..evaluation.markdown import markdown

    if args.picture:
        check_folder(args.picture.parent)
        check_files([args.picture])
    rows = []
    measured = on_pack(args) if args.pack else on_data(args)
    while True:
        try:
            row = next(measured).as_dict()
        except StopIteration as end:
            errors = end.value
            break
        rows.append(row)
        if not args.markdown:
            yield row
    if args.markdown:
        yield from markdown(rows)
    if args.picture:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        bars(rows).save(args.picture)
    if all(isinstance(error, InputError) for error in errors):
        return BAD_INPUT if errors else DONE
    return FAULT


def on_pack(args: argparse.Namespace) -> Iterator:
    """The rows of the miniature's own sets; returns the errors of methods that failed."""
    from ..evaluation.tables import Evaluation
    from ..mini import evaluation

    refuse(args, ("limit", "size", "table"), "without --data")
    sets = tuple(args.sets or evaluation.SETS)
    for name in sets:
        if name not in evaluation.SETS:
            raise InputError(f"no set {name!r}: choose among {', '.join(repr(s) for s in evaluation.SETS)}")
    methods = choose(args, evaluation.FREE) + open_rivals(args)
    backbone = open_backbone(args)
    how = Evaluation(args.refine, progress=progress("phrases"))
    return (yield from evaluation.table(backbone, methods, args.pack, sets, args.scenes, how))


def on_data(args: argparse.Namespace) -> Iterator:
    """The rows of a data set; returns the errors of methods that failed."""
    from ..data.damage import Damage
    from ..data.spec import load_data
    from ..evaluation.batches import First
    from ..evaluation.predictors import FREE
    from ..evaluation.tables import Evaluation, table

    refuse(args, ("sets",), "without --pack")
    dataset = load_data(args.data, args.split)
    if args.limit:
        dataset = First(dataset, args.limit)
    only_rivals = args.rival and not (args.model or args.decoders or args.method)
    methods = [] if only_rivals else choose(args, FREE)
    backbone = None if only_rivals else open_backbone(args)
    methods += open_rivals(args)
    published = args.table or table_of(args)
    damage = Damage(args.data)
    how = Evaluation(args.refine, working(args, methods, backbone), damage, progress("phrases"))
    name = TABLES[published] if published else args.data
    errors = yield from table(backbone, methods, name, dataset, how, published)
    if damage.damaged:
        log.warning("%d of %d phrases could not be read and are not in the scores", damage.damaged, damage.read_count)
    return errors


def open_backbone(args: argparse.Namespace):
    from ..backbones.load import load_backbone

    return load_backbone(args.model or "mini", choose_device(args.device))


def open_rivals(args: argparse.Namespace) -> list:
    """The rivals that were asked for. Raises InputError where one cannot be run."""
    if not args.rival:
        return []
    import transformers

    if not args.verbose:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    return [load_rival(spec, choose_device(args.device)) for spec in args.rival]


def table_of(args: argparse.Namespace) -> str | None:
    """The table that published rows of this data are in; none of a part of it, or of several data sets."""
    from ..data.spec import parse

    parts = parse(args.data)
    if len(parts) > 1 or args.split != "test" or "split" in parts[0].options or args.limit:
        return None
    kind, root = parts[0].kind, parts[0].root
    name = root.name if kind == "refcoco" else kind  # refcoco, refcoco+ and refcocog have one layout
    return name if name in TABLES else None


def working(args: argparse.Namespace, methods: Sequence, backbone) -> Callable[[int, int], tuple[int, int]]:
    """The height and width to work at, for a picture of some height and width: what decoders were trained at, else the
    model's own."""
    from ..segment.sizing import working_size

    infos = (getattr(getattr(p, "decoder", None), "info", None) for method in methods for p in method.predictors)
    own = backbone.native_area if backbone else PAPER**2
    area = next((info.pixels for info in infos if info), own)
    if args.size == "native":
        return lambda height, width: working_size(height, width, area=area, multiple=GRID)
    side = args.size or max(1, isqrt(area) // GRID) * GRID
    return lambda height, width: (side, side)


def choose(args: argparse.Namespace, free: dict) -> list:
    """The methods that were asked for; all there are where none was. Raises InputError where one has no decoder."""
    from ..decoders.base import CONDITIONS
    from ..decoders.files import load_decoder
    from ..evaluation.predictors import by_kind

    files = args.decoders or []
    if not files and (args.pack or args.model in (None, "mini")):
        files = [file for kind in DECODERS if (file := BUNDLED / f"{kind}.safetensors").is_file()]
    wanted = args.method or [*DECODERS, *free]
    kinds = {name for name in wanted if name not in free}
    methods = by_kind(map(load_decoder, files), kinds, CONDITIONS if args.conditions else ()) if kinds else []
    lacking = kinds - {method.name for method in methods} if args.method else ()
    if lacking:
        raise InputError(f"no decoder of kind {', '.join(sorted(lacking))} among {len(files)} files")
    return methods + [method for name, group in free.items() if name in wanted for method in group]

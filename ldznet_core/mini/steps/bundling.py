"""The last step: the files that the package carries."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace

from ...checkpoints.bundled import BUNDLED
from ...decoders.files import load_decoder, write_decoder
from ...errors import InputError
from .mask_decoders import BUNDLED_KINDS, bundled_decoder
from .settings import CHECKPOINT, TRANSFORMER, Build

log = logging.getLogger(__name__)
LIMIT = 84_000_000  # bytes of all bundled weights together


def metrics_of(build: Build, kind: str) -> dict:
    """Scores of a bundled decoder by evaluation set, for its file; nothing before the step `evaluate`."""
    path = build.folder / "bundled.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    return {
        row["set"]: {name: round(row[name]["mean"], 4) for name in ("miou", "iou_fg", "ap")}
        for row in rows
        if row["method"] == kind
    }


def bundle(build: Build) -> None:
    """Put the checkpoint, its tokenizer, the blended decoders and, where there is one, the transformer where `mini` is
    loaded from."""
    sources = {
        CHECKPOINT: build.grown,
        **{f"{kind}.safetensors": bundled_decoder(build, kind) for kind in BUNDLED_KINDS},
    }
    missing = [str(p) for p in sources.values() if not p.is_file()]
    if missing:
        raise InputError(f"nothing to bundle yet: {missing[0]} is missing, run the steps before")
    if (transformer := build.small.with_name(TRANSFORMER)).is_file():
        sources[TRANSFORMER] = transformer
    total = sum(p.stat().st_size for p in sources.values())
    if total > LIMIT:
        raise InputError(f"the weights take {total / 1e6:.1f} MB together, more than {LIMIT / 1e6:.0f} MB")
    BUNDLED.mkdir(parents=True, exist_ok=True)
    for name in {CHECKPOINT, TRANSFORMER} & sources.keys():
        shutil.copyfile(sources.pop(name), BUNDLED / name)
    for name, source in sources.items():
        decoder = load_decoder(source)
        info = replace(decoder.info, metrics=metrics_of(build, decoder.kind))
        write_decoder(decoder, info, BUNDLED / name)
    shutil.copytree(build.small.with_name("tokenizer"), BUNDLED / "tokenizer", dirs_exist_ok=True)
    files = sorted(BUNDLED.glob("*.safetensors"))
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (BUNDLED / "checksums.json").write_text(json.dumps(hashes, indent=1) + "\n")  # install.py checks them
    log.info("bundled %.1f MB", total / 1e6)

"""CLIP's byte-pair tokenizer, reading the `vocab.json` and `merges.txt` that every CLIP text encoder comes with.

Text in, token ids out; it knows no model. `learn` makes such a vocabulary from a list of words, `find_folder` finds
one on this machine.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from ..errors import InputError

FILES = ("vocab.json", "merges.txt")
CLIP = "openai/clip-vit-large-patch14"  # whose vocabulary all of Stable Diffusion reads
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
# What CLIP splits text into: contractions, runs of letters, single digits, runs of anything else.
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)


@lru_cache
def byte_letters() -> dict[int, str]:
    """A printable character for each byte: itself where it is printable, else one past the Latin-1 range."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (b for b in range(256) if b not in printable)
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def spell(piece: str) -> tuple[str, ...]:
    """A piece as byte letters, the last one marked as the end of a word."""
    letters = [byte_letters()[b] for b in piece.encode()]
    return (*letters[:-1], letters[-1] + "</w>")


def merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            out.append("".join(pair))
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return tuple(out)


class ClipTokenizer:
    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]):
        self.vocabulary = vocabulary
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.start, self.end = vocabulary[START], vocabulary[END]

    @classmethod
    def from_folder(cls, folder: Path) -> "ClipTokenizer":
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        return cls(vocabulary, [tuple(line.split()) for line in lines if line])

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.vocabulary, ensure_ascii=False, separators=(",", ":"))
        (folder / "vocab.json").write_text(text, encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.rank)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def word_tokens(self, piece: str) -> list[int]:
        symbols = spell(piece)
        while len(symbols) > 1:
            pairs = zip(symbols, symbols[1:], strict=False)
            best = min(pairs, key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            symbols = merge(symbols, best)
        return [self.vocabulary[s] for s in symbols]

    def encode(self, text: str) -> list[int]:
        """START, the text's tokens cut to 75, END, and END again as padding: 77 ids."""
        tokens = [t for piece in PIECES.findall(text.lower()) for t in self.word_tokens(piece)]
        tokens = [self.start, *tokens[: LENGTH - 2], self.end]
        return tokens + [self.end] * (LENGTH - len(tokens))


def learn(words: Iterable[str]) -> ClipTokenizer:
    """The smallest byte-pair vocabulary in which each of `words` is one token."""
    spelled = Counter(spell(word) for word in sorted(set(words)))
    merges: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in spelled):
        pairs: Counter = Counter()
        for symbols, count in spelled.items():
            pairs.update({pair: count for pair in zip(symbols, symbols[1:], strict=False)})
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = Counter({merge(symbols, best): count for symbols, count in spelled.items()})
    letters = list(byte_letters().values())
    entries = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges), START, END]
    return ClipTokenizer({entry: i for i, entry in enumerate(dict.fromkeys(entries))}, merges)


def find_folder(checkpoint: Path) -> Path:
    """The first folder that has a vocabulary for a checkpoint file. Raises InputError, naming where it looked."""
    folders = list(places(checkpoint))
    for folder in folders:
        if all((folder / name).is_file() for name in FILES):
            return folder
    looked = ", ".join(map(str, folders))
    raise InputError(
        f"{checkpoint} needs CLIP's {' and '.join(FILES)}, which are neither in {looked} nor in Hugging Face's cache "
        f"of {CLIP}: put them into the first folder, or name theirs in LDZNET_TOKENIZER (ComfyUI has them in "
        "comfy/sd1_tokenizer)"
    )


def places(checkpoint: Path) -> Iterator[Path]:
    """Where a vocabulary may be, nearest first."""
    yield checkpoint.parent / "tokenizer"
    if folder := os.environ.get("LDZNET_TOKENIZER"):
        yield Path(folder)
    if folder := os.environ.get("COMFYUI_PATH"):
        yield Path(folder) / "comfy" / "sd1_tokenizer"
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # comes with transformers
        return
    cached = try_to_load_from_cache(CLIP, FILES[0])  # looks on this disk only
    if isinstance(cached, str):
        yield Path(cached).parent

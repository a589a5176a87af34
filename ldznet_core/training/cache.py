"""Latents of a data set's pictures, computed once and kept on disk in half precision.

Index i of the cache is index i of the data set. Pictures are whole and resized to one size: a cache has no crops.
"""

import hashlib
import math
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import TorchBackbone
from ..backbones.fingerprint import fingerprint
from ..data.base import Dataset, Example
from ..data.damage import Damage
from ..data.resize import resized
from ..errors import InputError
from ..segment.examples import latents_of
from .processes import ALONE, Processes
from .shards import SHARD_BYTES, Shard, Shards

EXAMPLES = 256  # in a shard at most: a build that is killed loses one shard, which must not take long on a CPU
SAMPLE = 16  # examples that tell one data set from another


class LatentCache:
    """The examples of a data set at `size` x `size`, with latents [C, size/8, size/8] in place of pictures.

    Opening it builds what is missing; of several processes each builds its part. Neighbours that name the same picture
    share its latent. An example that could not be read when it was built raises InputError again. Raises InputError
    where the folder holds latents of another model, size or data set, or lacks room.
    """

    def __init__(
        self,
        folder: Path,
        backbone: TorchBackbone,
        dataset: Dataset,
        size: int,
        batch: int = 8,
        damage: Damage | None = None,
        processes: Processes = ALONE,
    ):
        if size <= 0 or size % 8:
            raise InputError(f"latents of pictures of {size} px cannot be cached: give a multiple of 8")
        if not len(dataset):
            raise InputError("the data set holds no examples: check its folder and its split")
        self.backbone, self.dataset, self.size, self.batch = backbone, dataset, size, batch
        self.model, self.damage = fingerprint(backbone), damage or Damage()
        digest, share = identity(dataset)
        latent_bytes = 2 * backbone.channels * (size // 8) ** 2
        self.each = min(EXAMPLES, max(1, SHARD_BYTES // latent_bytes))
        about = {"content": "latents", "model": self.model, "model name": backbone.name, "size": size}
        about |= {"examples": len(dataset), "data": digest}
        self.shards = Shards(folder, about, math.ceil(len(dataset) / self.each))
        pictures = math.ceil(share * len(dataset))
        mask_bytes = size * size // 64  # packed masks are seldom larger
        self.shards.build(
            self._encoded,
            f"latents of about {pictures} pictures ({len(dataset)} examples) at {size} px",
            pictures * latent_bytes + len(dataset) * mask_bytes,
            processes,
        )
        self.damage.check()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        shard, place = self._place(index)
        phrase, caption, picture = self.texts(index)
        first, middle, last = shard.rows("ends", 2 * place, 2 * place + 3).tolist()
        return Example(
            phrase,
            unpacked(shard.rows("masks", first, middle), self.size),
            latent=self.latent(index),
            ignore=unpacked(shard.rows("masks", middle, last), self.size) if last > middle else None,
            caption=caption,
            picture=picture,
        )

    def latent(self, index: int) -> Tensor:
        """[C, size/8, size/8] in float32, scaled."""
        shard, place = self._place(index)
        return shard.row("latents", int(shard.row("rows", place))).float()

    def texts(self, index: int) -> tuple[str, str, str]:
        """Phrase, caption and picture of an example."""
        shard, place = self._place(index)
        if isinstance(shard.texts[place], str):
            raise InputError(shard.texts[place])
        return tuple(shard.texts[place])

    def readable(self, index: int) -> bool:
        shard, place = self._place(index)
        return not isinstance(shard.texts[place], str)

    def _place(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, place = divmod(index, self.each)
        return self.shards[number], place

    def _encoded(self, number: int) -> tuple[dict[str, Tensor], list]:
        """A shard: `latents` [K, C, h, w] of K pictures, `rows` [N] the picture of each example, and packed `masks`,
        two for each example (what it shows, what is ignored), with their `ends`."""
        rows, texts, masks, previous, count = [], [], [], "", 0
        waiting: list[Example] = []
        latents: list[Future[Tensor]] = []
        with ThreadPoolExecutor(1) as pool:  # encodes a batch while the next one is read

            def encode() -> None:
                wait(latents)
                latents.append(pool.submit(encoded, self.backbone, waiting.copy()))
                waiting.clear()

            for index in range(number * self.each, min(len(self), (number + 1) * self.each)):
                example = self._read(index)
                if isinstance(example, str):
                    texts.append(example)
                    rows.append(-1)
                    masks += [b"", b""]
                    continue
                if not example.picture or example.picture != previous:
                    waiting.append(example)
                    count += 1
                    if len(waiting) == self.batch:
                        encode()
                previous = example.picture
                rows.append(count - 1)
                texts.append([example.phrase, example.caption, example.picture])
                masks += [packed(example.mask), b"" if example.ignore is None else packed(example.ignore)]
            if waiting:
                encode()
        side = self.size // 8
        parts = [torch.zeros(0, self.backbone.channels, side, side).half(), *(part.result() for part in latents)]
        return {
            "latents": torch.cat(parts),
            "rows": torch.tensor(rows),
            "masks": torch.from_numpy(np.frombuffer(b"".join(masks), np.uint8).copy()),
            "ends": torch.from_numpy(np.cumsum([0, *map(len, masks)])),
        }, texts

    def _read(self, index: int) -> Example | str:
        """An example at the cache's size, or why it cannot be read."""
        result: Example | str = ""
        with self.damage.item():
            try:
                result = resized(self.dataset[index], self.size, self.size)
            except InputError as error:
                result = str(error)
                raise
        return result


def encoded(backbone: TorchBackbone, examples: Sequence[Example]) -> Tensor:
    """Latents [B, C, h, w] of examples of one size, in half precision on the CPU. Raises InputError where they are not
    finite."""
    z = latents_of(backbone, examples).cpu().half()
    if not z.isfinite().all():
        names = ", ".join(example.picture or example.phrase for example in examples)
        raise InputError(f"{backbone.name} encodes one of {names} as NaN or infinity: run its VAE in float32")
    return z


def packed(mask: np.ndarray) -> bytes:
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def unpacked(data: Tensor, side: int) -> np.ndarray:
    """bool [side, side]"""
    bits = np.frombuffer(zlib.decompress(data.numpy().tobytes()), np.uint8)
    return np.unpackbits(bits, count=side * side).reshape(side, side).astype(bool)


def identity(dataset: Dataset) -> tuple[str, float]:
    """A hash of what evenly spaced examples are called, and the share of examples that begin a new picture, judged by
    them and the examples after them: reading all of a large data set for that would take too long."""
    words, new = [], []
    for index in np.unique(np.linspace(0, max(0, len(dataset) - 2), SAMPLE).astype(int)).tolist():
        try:
            pair = [dataset[i] for i in range(index, min(index + 2, len(dataset)))]
        except InputError:
            words.append([index])
            continue
        words.append([[e.phrase, e.caption, re.split(r"[/\\]", e.picture)[-1], *e.mask.shape] for e in pair])
        new.append(not pair[0].picture or pair[0].picture != pair[-1].picture)
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16], sum(new) / len(new) if new else 1.0

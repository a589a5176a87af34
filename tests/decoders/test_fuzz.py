"""Decoder files that went bad in every way we could think of: our one-line error or a decoder, never anything else.

`LDZNET_FUZZ=2000 python -m pytest tests/decoders/test_fuzz.py` tries that many; a failing one reports its seed.
"""

import io
import json
import os
import random
import resource
import struct
import zipfile

import pytest
import torch

from ldznet_core import InputError, load_decoder
from ldznet_core.decoders.files import DecoderInfo, write_decoder
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.unet import UNetConfig

FILES = int(os.environ.get("LDZNET_FUZZ", "120"))
TINY = UNetConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_levels=(0,), context_dim=8)
MEMORY = 400 * 2**20  # bytes that all of them together may add to the most that the process ever held
VALUES = [0, -1, 1, 2**31, 2**63, 10**30, 1e308, None, True, "F64", "I8", "", [], {}, [[]], "A" * 10_000]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The bytes of a decoder in our format and in the authors'."""
    folder = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    decoder = MaskDecoder(DecoderConfig("ldznet", TINY, grid=4)).requires_grad_(False)
    write_decoder(decoder, DecoderInfo(family="test", prediction="eps"), folder / "a.safetensors")
    state = {"model_ema.diffusion_model" + n.replace(".", ""): p.half() for n, p in decoder.named_parameters()}
    state |= {f"model.diffusion_model.{n}": p.half() for n, p in decoder.named_parameters()}
    torch.save({"state_dict": state}, folder / "a.ckpt")
    return {kind: (folder / f"a.{kind}").read_bytes() for kind in ("safetensors", "ckpt")}


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Single bits, most of them where structure is: at the beginning and the end."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 50))):
        edge = rng.randrange(min(4096, len(data)))
        place = rng.choice((rng.randrange(len(data)), edge, len(data) - 1 - edge))
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice((1, 8, 500, 20_000))
    filling = rng.choice((b"\0", b"\xff", rng.randbytes(1)))
    return data[:start] + (filling * length)[: len(data) - start] + data[start + length :]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A piece taken out, or put in twice."""
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:a] + data[b:] if rng.random() < 0.5 else data[:b] + data[a:]


def edit_header(data: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in a safetensors header: shapes, types, offsets, our own metadata."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    entry = header[rng.choice(list(header))]
    key = rng.choice(list(entry))
    if key in ("config", "info", "taps", "format_version") and rng.random() < 0.7:
        inner = json.loads(entry[key])
        if isinstance(inner, dict) and inner:
            place = inner["unet"] if "unet" in inner and rng.random() < 0.7 else inner
            place[rng.choice(list(place))] = rng.choice(VALUES)
        else:
            inner = rng.choice(VALUES)
        entry[key] = json.dumps(inner)
    else:
        entry[key] = rng.choice((rng.choice(VALUES), [rng.choice(VALUES)] * rng.randrange(6)))
    text = json.dumps(header).encode()
    size = rng.choice((len(text), len(text), len(text), 2**40, 0))
    return struct.pack("<Q", size) + text + data[8 + length :]


def edit_archive(data: bytes, rng: random.Random) -> bytes:
    """Another pickle, or other records, in a well-formed archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(out, "w") as archive:
        names = given.namelist()
        victim = next(n for n in names if n.endswith("data.pkl")) if rng.random() < 0.7 else rng.choice(names)
        for name in names:
            content = given.read(name)
            if name == victim:
                content = rng.choice((flip, cut, overwrite, splice, nest))(content, rng) if content else b"x"
            archive.writestr(name, content)
    return out.getvalue()


def nest(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((10, 5_000, 200_000))
    return b"\x80\x02" + rng.choice((b"(" * depth + b"l" * depth, b"]" * depth + b"a" * depth, b"}" * depth)) + b"."


WAYS = {
    "safetensors": (cut, flip, overwrite, splice, edit_header, edit_header, edit_header),
    "ckpt": (cut, flip, overwrite, splice, edit_archive, edit_archive, edit_archive),
}


def test_no_damaged_file_gives_more_than_our_error(originals, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    refused = 0
    for seed in range(FILES):
        rng = random.Random(seed)
        kind = rng.choice(list(WAYS))
        way = rng.choice(WAYS[kind])
        file = tmp_path / f"bad.{kind}"
        file.write_bytes(way(originals[kind], rng))
        try:
            load_decoder(file)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and "bad." in str(error), f"seed {seed}, {way.__name__}: {error}"
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {kind}, {way.__name__}: {error!r}") from error
        assert [p.name for p in tmp_path.iterdir()] == [file.name], f"seed {seed} left a file"
        file.unlink()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(f"{FILES} files, {refused} refused, peak memory grew by {grown / 2**20:.0f} MiB")
    assert refused > FILES / 2 and grown < MEMORY

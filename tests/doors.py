"""The runs of `parity.py`: everything that can be asked, at every door (the command line, Python, ComfyUI's nodes)."""

import inspect
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from studio import PARK, Studio

# All that is known here of where things live: when modules move, these lines do.
from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.backbones.families.unet import plan
from ldznet_core.cli import main
from ldznet_core.segment.guided_filter import refine
from ldznet_core.segment.methods import decoder_free
from ldznet_core.segment.postprocess import exclusive

Results = dict[str, np.ndarray]  # by name: [..., H, W], float32 or 8 bits, or a row of numbers
Runs = dict[str, Callable[[], Results]]

TEXT, CAPTION = "panda | pumpkin | ladybug", "a panda, a pumpkin and a ladybug on grass"
PHRASES, DRAWN = TEXT.split(" | "), "a pumpkin on a blue background"
FREE = ("attention", "noise")  # of a decoder

METHODS = {  # what is asked of pictures, in the command line's words
    "ldznet": {"method": "ldznet"},  # under no text
    "ldznet under the phrase": {"method": "ldznet", "condition": "phrase"},
    "ldznet under a caption": {"method": "ldznet", "condition": "caption", "caption": CAPTION},
    "ldznet as its authors read": {"method": "ldznet", "authors": True},
    "ldznet under another noise": {"method": "ldznet", "seed": 1, "timestep": 300},
    "znet": {"method": "znet"},
    "attention": {"method": "attention"},  # which the miniature does not spread
    "attention over objects, with a caption": {"method": "attention", "spread": "objects", "caption": CAPTION},
    "attention over stuff, of presence 4": {"method": "attention", "spread": "stuff", "presence": 4.0},
    "noise": {"method": "noise"},
}
SETTLED = ("ldznet", "attention")  # also captured while sampling, refined, and made to compete


@cache
def pictures() -> dict[str, Image.Image]:
    """The example picture and, with sides that are multiples of nothing, two parts of it."""
    park = Image.open(Path(__file__).parents[1] / PARK).convert("RGB")
    wide = park.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((20, 60, 221, 211))
    return {"park": park, "wide": wide, "tall": park.crop((10, 3, 141, 253))}


def as_image(picture: Image.Image) -> torch.Tensor:
    """IMAGE [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255)[None]


# ---- the command line ----------------------------------------------------------------------------


def command(name: str, *words: str, **asked) -> Results:
    """The files of one call, read back, and what it printed of presence."""
    options = [word for key, value in asked.items() for word in [f"--{key}", str(value)][: 1 if value is True else 2]]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as printed:
        if name == "segment":
            words = [f"{folder}/{stem}.png" for stem in pictures()]
            for file, picture in zip(words, pictures().values(), strict=True):
                picture.save(file)
        status = main([name, *words, *options, "--text", TEXT, "--device", "cpu", "--out", f"{folder}/out"])
        assert status == 0, f"ldznet {name} ended with {status}"
        results = {}
        for line in map(json.loads, printed.getvalue().splitlines()):
            stem, phrases = Path(line["image"]).stem, line["phrases"]
            results[f"{stem}, masks"] = np.stack([read(phrase["mask"]) for phrase in phrases])
            if "presence" in phrases[0]:
                results[f"{stem}, presence"] = np.array([phrase["presence"] for phrase in phrases], np.float32)
            kinds = ("overlay", "labels") if name == "segment" else ("image", "composite", "inpainted")
            results |= {f"{stem}, {kind}": read(line[kind]) for kind in kinds if line.get(kind)}
    return results


def read(file: str) -> np.ndarray:
    """A PNG's grey [H, W] or colours [C, H, W]."""
    pixels = np.asarray(Image.open(file))
    return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# ---- Python --------------------------------------------------------------------------------------


@cache
def host():
    return load_backbone("mini")


@cache
def decoder(kind: str):
    return load_decoder("mini", kind=kind)


def reader(method: str, condition: str | None = None, samples: int | None = None, authors: bool = False, **options):
    if method in FREE:
        return decoder_free(host(), method, samples=samples, **options)
    return Segmenter(host(), decoder(method), condition, samples=samples or 1, authors=authors)


def python_images(settle: bool, method: str, presence: float = 0.0, **asked) -> Results:
    """Masks of the pictures; if `settle` also refined, and competing for every pixel."""
    how = {name: asked.pop(name) for name in ("caption", "seed", "timestep") if name in asked}
    find, results = reader(method, **asked), {}
    for name, picture in pictures().items():
        found = find.predict(picture, PHRASES, **how)
        masks = found.present(presence)[0]
        results[f"{name}, masks"] = masks
        if found.presence is not None:
            results[f"{name}, presence"] = found.presence[0]
        if settle:
            results[f"{name}, refined"] = refine(masks, as_image(picture)[0], found.reach)
            results[f"{name}, competing"], results[f"{name}, winners"] = exclusive(masks)
    return {name: value.numpy() for name, value in results.items()}


def python_captured(method: str, height: int = 64, width: int = 192) -> Results:
    """A drawing and its masks, from what was seen while drawing."""
    find, size = reader(method), (height // 8, width // 8)
    if method in FREE:
        z, queries = host().sample(DRAWN, height, width, asked=plan(host().unet_config, *size))
        masks = find.predict_latent(z, PHRASES, captured=queries).masks
    else:
        z, features = host().sample(DRAWN, height, width, taps=find.decoder.taps)
        masks = find.predict_latent(z, PHRASES, captured=features).masks
    return {"latent": z[0].numpy(), "masks": masks[0].numpy()}


# ---- ComfyUI's nodes -----------------------------------------------------------------------------


class Comfy:
    """The nodes, with a miniature of their own on their sockets."""

    @torch.inference_mode()
    def __init__(self, nodes: dict[str, type]):
        self.nodes, self.mini = nodes, Studio(*nodes["LDZNetLoadMini"].execute().args)
        self.mini.vae.first_stage_model.regularization.sample = False  # later engines take the posterior's mean as well

    def call(self, node: str, **given) -> tuple:
        """What a node puts out."""
        execute = self.nodes[f"LDZNet{node}"].execute
        sockets = {"model", "clip", "vae"} & {*inspect.signature(execute).parameters}
        return execute(**{name: getattr(self.mini, name) for name in sockets}, **given).args

    def ask(self, method: str, **given) -> tuple:
        """What the mask node of a method puts out."""
        if method in FREE:
            return self.call("AttentionMask", text=TEXT, method=method, **given)
        decoder, _ = self.call("LoadDecoder", decoder_name=f"miniature: {method} (bundled)")
        return self.call("SegmentCaptured" if "capture" in given else "Segment", text=TEXT, decoder=decoder, **given)

    @torch.inference_mode()
    def images(self, settle: bool, **asked) -> Results:
        """Masks of the pictures; if `settle` also what other nodes make of them."""
        results = {}
        for name, picture in pictures().items():
            image = as_image(picture)
            masks, _, results[f"{name}, overlay"], *_ = self.ask(image=image, **asked)
            results[f"{name}, masks"] = masks
            if settle:
                (results[f"{name}, refined"],) = self.call("RefineMask", mask=masks, image=image)
                results[f"{name}, labels"], kept = self.call("LabelMap", masks=masks, text=TEXT)
                results[f"{name}, competing"] = kept
        return {name: value.numpy() for name, value in results.items()}

    @cached_property
    def drawn(self) -> dict:
        """A batch of two, sampled under the eyes of Capture."""
        model, capture = self.call("Capture")
        latent = self.mini.sample(model, steps=20, latent={"samples": torch.zeros(2, 4, 16, 24)})
        return {"capture": capture, "latent": latent}

    @torch.inference_mode()
    def drawings(self, captured: bool, method: str) -> Results:
        """Masks of two drawings, from what was seen while sampling or from their latents alone."""
        seen = self.drawn if captured else {"latent": self.drawn["latent"]}
        return {"latents": seen["latent"]["samples"].numpy(), "masks": self.ask(method, **seen)[0].numpy()}


# ---- all of them ---------------------------------------------------------------------------------


def runs_without_engine() -> Runs:
    runs = {}
    for name, asked in METHODS.items():
        runs[f"command line, images, {name}"] = partial(command, "segment", **asked)
        runs[f"Python, images, {name}"] = partial(python_images, name in SETTLED, **asked)
    for method in SETTLED:
        settled = {"method": method, "refine": True, "labels": True}
        runs[f"command line, settled, {method}"] = partial(command, "segment", **settled)
        runs[f"command line, captured, {method}"] = partial(command, "generate", DRAWN, method=method, size="128x64")
        runs[f"Python, captured, {method}"] = partial(python_captured, method)
    return runs


def runs_in_comfyui(comfy: Comfy | None) -> Runs:
    """None will do to learn their names."""
    runs = {}
    for name, asked in METHODS.items():
        if not {"condition", "authors"} & {*asked}:  # the nodes have neither
            runs[f"ComfyUI, images, {name}"] = partial(Comfy.images, comfy, name == SETTLED[0], **asked)
    for method in SETTLED:
        runs[f"ComfyUI, latents, {method}"] = partial(Comfy.drawings, comfy, False, method)
        runs[f"ComfyUI, captured, {method}"] = partial(Comfy.drawings, comfy, True, method)
    return runs

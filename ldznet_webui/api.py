"""POST /ldznet/segment: masks of a picture, with the checkpoint that is loaded."""

import base64
import binascii
import io
import logging
import time
from typing import Any

from PIL import Image, UnidentifiedImageError

from ldznet_core.errors import InputError
from ldznet_core.imaging.images import to_rgb, upright
from ldznet_core.segment.methods import METHODS

from . import host
from .masks import Finder, Found, Words, grey, number

log = logging.getLogger("LD-ZNet")
SETTINGS = ("method", "threshold", "refine", "grow", "feather", "invert")
KNOWN = {"image", "phrases", "seed", "soft", *SETTINGS}
MOST_SEED = 2**64 - 1


def picture_of(text: Any) -> Image.Image:
    """The picture in a base64 text, with or without the head of a data URL. Raises InputError for anything else."""
    if not isinstance(text, str) or not text:
        raise InputError("no image was given: send one as base64 under 'image'")
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[-1], validate=True)))
        picture.load()
    except (binascii.Error, OSError, SyntaxError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        raise InputError("'image' is no picture in base64: encode the bytes of a PNG or JPEG file") from None
    return to_rgb(upright(picture))


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def answer(found: Found, soft: bool, seconds: float) -> dict:
    """What the route returns. Masks are grey PNGs in base64: as they are used or, if asked, soft."""
    masks = [grey(mask) for mask in found.soft] if soft else found.masks()
    rows = zip(found.words.phrases, found.present, found.presence, masks, strict=True)
    return {
        "masks": [
            {"phrase": phrase, "found": there, "presence": presence, "mask": encoded(mask)}
            for phrase, there, presence, mask in rows
        ],
        "union": encoded(found.union()),
        "overlay": encoded(found.overlay()),
        "labels": encoded(found.label_map()),
        "note": found.missing(),
        "seconds": round(seconds, 3),
    }


def segment(request: dict[str, Any]) -> dict:
    """Raises InputError for what cannot be done."""
    unknown = sorted(set(request) - KNOWN)
    if unknown:
        raise InputError(f"no option {unknown[0]!r}: those are {', '.join(sorted(KNOWN))}")
    words = Words.of(request.get("phrases"), **{name: request[name] for name in SETTINGS if name in request})
    picture = picture_of(request.get("image"))
    seed = int(number("seed", request.get("seed", 0), 0, MOST_SEED))
    began = time.perf_counter()

    def work() -> Found:
        with Finder(words.method) as finder:
            return finder.find(words, picture, seed)

    found = host.exclusive(work)
    return answer(found, bool(request.get("soft", False)), time.perf_counter() - began)


def add_routes(demo, app) -> None:
    """Called by the WebUI once its server is there. `demo` is None where it runs without its page."""
    from fastapi import Body
    from fastapi.responses import JSONResponse

    @app.post("/ldznet/segment")
    def post_segment(request: dict = Body(...)):  # noqa: B008
        try:
            return segment(request)
        except InputError as error:
            return JSONResponse({"error": str(error)}, status_code=422)
        except Exception as error:
            log.exception("segmenting failed")
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=500)

    @app.get("/ldznet/methods")
    def get_methods():
        return [*METHODS, *host.decoder_names()]

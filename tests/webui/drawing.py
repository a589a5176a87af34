"""Pictures drawn by a WebUI through its API, and masks of them."""

import json

import hosts
import numpy as np
from PIL import Image

TITLE = "LD-ZNet Masks"
DRAW = {
    "prompt": "a pumpkin on a blue background", "seed": 3, "steps": 8, "width": 128, "height": 128, "cfg_scale": 3,
    "sampler_name": "Euler", "save_images": False,
}  # fmt: skip


class Drawn:
    """What a generation gave: its pictures as arrays, and what it says of masks."""

    def __init__(self, answer: dict):
        self.pictures = [np.asarray(hosts.decoded(image).convert("RGB")) for image in answer["images"]]
        self.info = json.loads(answer["info"])
        said = self.info["extra_generation_params"]
        self.note, masks = said.get("LD-ZNet note", ""), said.get("LD-ZNet masks", {})
        self.report, self.first = masks.get("pictures", []), masks.get("first")

    @property
    def mask(self) -> np.ndarray:
        """That of the first phrase, as flags [H, W]."""
        return self.pictures[self.first][..., 0] > 127


def draw(webui, *args, **values) -> Drawn:
    if args:
        values["alwayson_scripts"] = {TITLE: {"args": [True, *args]}}
    return Drawn(webui.post("/sdapi/v1/txt2img", **{**DRAW, **values}))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def segmented(webui, picture: np.ndarray, phrase: str = "pumpkin") -> np.ndarray:
    """The mask of a picture by a pass of its own, as flags [H, W]."""
    picture = hosts.encoded(Image.fromarray(picture))
    answer = webui.post("/ldznet/segment", image=picture, phrases=phrase, grow=4, feather=4)
    return np.asarray(hosts.decoded(answer["masks"][0]["mask"])) > 127

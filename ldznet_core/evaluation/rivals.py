"""Other programs that turn words into masks, run through transformers on the same pictures, for the same scores.

Models are read from disk, from a folder or from the cache that `hf download` fills; nothing is fetched. Each rival sees
pictures at their own size and resizes them as it was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, brief
from ..segment.base import ROWS_AT_ONCE, MaskPrediction
from ..segment.examples import image_of
from .batches import Batch
from .predictors import Answers, Method

DETECTED = 0.25  # score of a box or an instance from which on it counts, as in transformers
RANDOM = "random_weights"  # set in a model's config.json, it says that nobody trained this model


class Rival(Protocol):
    """Masks [1, P, h, w] of P phrases in a picture uint8 [H, W, 3], stretched to any size; presence [1, P] in 0..1
    where the model gives one. `random` says that weights of it were not trained."""

    random: bool

    def __call__(self, image: np.ndarray, phrases: Sequence[str]) -> MaskPrediction: ...


@dataclass(frozen=True)
class Prompted:
    """A rival as a predictor."""

    rival: Rival

    def __call__(self, backbone: object, batch: Batch) -> Answers:
        masks, presence = [], []
        for picture in batch.originals:
            with torch.inference_mode():
                prediction = self.rival(image_of(picture[0]), [example.phrase for example in picture])
            masks += prediction.masks[0]
            if prediction.presence is not None:
                presence += prediction.presence[0]
        return Answers(masks, torch.stack(presence) if presence else None, least=DETECTED)


def load_rival(spec: str, device: str = "cpu") -> Method:
    """The rival that the command line names: NAME, or NAME=MODEL with a folder or the hub's name of a model; two of
    those, joined by a comma, where the rival has two models.

    Raises InputError where there is no such rival, its model is not on this machine or transformers does not know it.
    """
    name, _, models = spec.partition("=")
    if name not in RIVALS:
        raise InputError(f"no rival {name!r}: choose among {', '.join(RIVALS)}")
    make, known = RIVALS[name]
    chosen = models.split(",") if models else known
    if len(chosen) != len(known) or not all(chosen):
        raise InputError(f"the rival {name} has {len(known)} models: write {name}={','.join(known)}")
    rival = make(name, device, *chosen)
    return Method(f"{name} (random weights)" if rival.random else name, "", (Prompted(rival),))


class Loader:
    """Loads parts of one model of a rival: `loader("CLIPSegProcessor")`."""

    def __init__(self, rival: str, model: str):
        self.rival, self.model = rival, model

    def __call__(self, class_name: str, **options) -> Any:
        import transformers

        try:
            of_class = getattr(transformers, class_name)
        except (AttributeError, ImportError) as error:
            raise InputError(
                f"transformers {transformers.__version__} cannot run {self.rival} ({brief(error)}): "
                "pip install --upgrade transformers"
            ) from None
        try:
            return of_class.from_pretrained(self.model, local_files_only=True, **options)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            if Path(self.model).is_dir():
                reason = brief(error)[:200]
                problem = f"the folder {self.model} holds no {class_name} that can be read ({reason}): get it again"
            else:
                problem = f"the model {self.model} is not on this machine: fetch it with 'hf download {self.model}'"
            raise InputError(f"{self.rival}: {problem}, or name another one with --rival {self.rival}=FOLDER") from None

    def network(self, class_name: str, device: str) -> tuple[Any, bool]:
        """The network, and whether any of its weights are random: those that the file lacks, or all where its config
        says so."""
        network, about = self(class_name, output_loading_info=True)
        random = bool(about["missing_keys"]) or bool(getattr(network.config, RANDOM, False))
        return network.to(device).eval(), random


class ClipSeg:
    """CLIPSeg (Lueddecke and Ecker, 2022)."""

    def __init__(self, name: str, device: str, model: str):
        load = Loader(name, model)
        self.device, self.processor = device, load("CLIPSegProcessor")
        self.network, self.random = load.network("CLIPSegForImageSegmentation", device)

    def __call__(self, image: np.ndarray, phrases: Sequence[str]) -> MaskPrediction:
        masks = []
        for start in range(0, len(phrases), ROWS_AT_ONCE):
            some = list(phrases[start : start + ROWS_AT_ONCE])
            inputs = self.processor(
                text=some, images=[image] * len(some), padding=True, truncation=True, return_tensors="pt"
            )
            logits = self.network(**inputs.to(self.device)).logits  # [P, 352, 352], or [352, 352] of one phrase
            masks.append(logits.reshape(len(some), *logits.shape[-2:]).float().sigmoid().cpu())
        return MaskPrediction(torch.cat(masks)[None])


class GroundedSam:
    """Boxes of Grounding DINO (Liu et al., 2023), cut out by SAM (Kirillov et al., 2023).

    A phrase's mask is the highest one of all its boxes; its presence is the score of the best box.
    """

    def __init__(self, name: str, device: str, detector: str, segmenter: str):
        load_detector, load_segmenter = Loader(name, detector), Loader(name, segmenter)
        self.device = device
        self.read, self.prepare = load_detector("GroundingDinoProcessor"), load_segmenter("SamProcessor")
        self.detector, first = load_detector.network("GroundingDinoForObjectDetection", device)
        self.segmenter, second = load_segmenter.network("SamModel", device)
        self.random = first or second

    def __call__(self, image: np.ndarray, phrases: Sequence[str]) -> MaskPrediction:
        pixels = self.prepare(image, return_tensors="pt").to(self.device)
        embeddings = self.segmenter.get_image_embeddings(pixels["pixel_values"])
        masks, presence = [], []
        for phrase in phrases:
            boxes, best = self.detect(image, phrase)
            masks.append(self.cut_out(image, boxes, embeddings))
            presence.append(best)
        return MaskPrediction(torch.stack(masks)[None], torch.tensor([presence]))

    def detect(self, image: np.ndarray, phrase: str) -> tuple[Tensor, float]:
        """The boxes [N, 4] of a phrase, as left, top, right and bottom in pixels, and the best score of any box."""
        text = phrase.lower().rstrip(" .") + "."
        outputs = self.detector(**self.read(images=image, text=text, return_tensors="pt").to(self.device))
        scores = outputs.logits[0].float().sigmoid().amax(-1).cpu()  # [queries]
        x, y, width, height = outputs.pred_boxes[0].float().cpu()[scores > DETECTED].unbind(-1)
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
        return corners * torch.tensor([*image.shape[1::-1]] * 2), float(scores.max())

    def cut_out(self, image: np.ndarray, boxes: Tensor, embeddings: Tensor) -> Tensor:
        """The soft mask [H, W] of all boxes; nothing where there are none."""
        mask = torch.zeros(image.shape[:2])
        for some in boxes.split(ROWS_AT_ONCE) if len(boxes) else ():
            inputs = self.prepare(image, input_boxes=[some.tolist()], return_tensors="pt")
            outputs = self.segmenter(
                image_embeddings=embeddings,
                input_boxes=inputs["input_boxes"].float().to(self.device),
                multimask_output=False,
            )
            logits = self.prepare.image_processor.post_process_masks(
                outputs.pred_masks.float().cpu(), inputs["original_sizes"], inputs["reshaped_input_sizes"],
                binarize=False,
            )  # fmt: skip
            mask = torch.maximum(mask, logits[0][:, 0].sigmoid().amax(0))
        return mask


class Sam3:
    """SAM 3 (Carion et al., 2025): a phrase's mask is the highest one of its instances, its presence the best score."""

    def __init__(self, name: str, device: str, model: str):
        load = Loader(name, model)
        self.device, self.tokenizer = device, load("AutoTokenizer")
        self.network, self.random = load.network("Sam3Model", device)

    def __call__(self, image: np.ndarray, phrases: Sequence[str]) -> MaskPrediction:
        side = self.network.config.image_size
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        vision = self.network.get_vision_features(pixel_values=pixels.to(self.device))
        masks, presence = [], []
        for phrase in phrases:
            text = self.tokenizer(
                phrase, padding="max_length", max_length=32, truncation=True, return_tensors="pt"
            ).to(self.device)  # fmt: skip
            outputs = self.network(
                vision_embeds=vision, input_ids=text["input_ids"], attention_mask=text["attention_mask"]
            )
            scores = outputs.pred_logits[0].float().sigmoid()  # [queries]
            if outputs.presence_logits is not None:
                scores = scores * outputs.presence_logits[0].float().sigmoid()
            soft = outputs.pred_masks[0].float().sigmoid() * (scores > DETECTED)[:, None, None]
            masks.append(soft.amax(0).cpu())
            presence.append(float(scores.max()))
        return MaskPrediction(torch.stack(masks)[None], torch.tensor([presence]))


RIVALS: dict[str, tuple[Callable[..., Rival], tuple[str, ...]]] = {
    "clipseg": (ClipSeg, ("CIDAS/clipseg-rd64-refined",)),
    "grounding-dino+sam": (GroundedSam, ("IDEA-Research/grounding-dino-base", "facebook/sam-vit-huge")),
    "sam3": (Sam3, ("facebook/sam3",)),
}
"""How each rival is made, and the models that it is made of by default."""

"""Scores that others published, in percent, as the paper's tables give them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A line of a published table; None where no figure was given. `iou` is one whose kind the paper does not say."""

    dataset: str
    method: str
    miou: float | None = None
    iou_fg: float | None = None
    ap: float | None = None
    iou: float | None = None

    def as_dict(self) -> dict:
        """Keys as in a row that was measured here, of those scores that were published."""
        about = {"set": self.dataset, "method": f"{self.method} (published)", "text": "", "refined": False}
        figures = {"miou": self.miou, "iou_fg": self.iou_fg, "ap": self.ap, "iou": self.iou}
        scores = {name: {"mean": f / 100, "std": 0.0} for name, f in figures.items() if f is not None}
        return about | {"seeds": None, "samples": None, "published": True} | scores


TABLES = {
    "phrasecut": "PhraseCut", "aigi": "AIGI", "refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg",
}  # fmt: skip
"""The sets that there are published rows of, by the name that the command line knows."""

# PNVR et al., LD-ZNet: A Latent Diffusion Approach for Text-Based Image Segmentation (ICCV 2023), tables 1 to 3. They
# took over the rows of earlier methods from their own papers. Table 3 says neither which split nor which IoU.
PUBLISHED = (
    Published("PhraseCut", "RMI", 21.1, 42.5),
    Published("PhraseCut", "Mask-RCNN Top", 39.4, 47.4),
    Published("PhraseCut", "HulaNet", 41.3, 50.8),
    Published("PhraseCut", "CLIPSeg (PC+)", 43.4, 54.7, 76.7),
    Published("PhraseCut", "CLIPSeg (PC, D=128)", 48.2, 56.5, 78.2),
    Published("PhraseCut", "RGBNet", 46.7, 56.2, 77.2),
    Published("PhraseCut", "ZNet", 51.3, 59.0, 78.7),
    Published("PhraseCut", "LD-ZNet", 52.7, 60.0, 78.9),
    Published("PhraseCut", "MDETR", 53.7),
    Published("PhraseCut", "GLIPv2-T", 59.4),
    Published("AIGI", "MDETR", 53.4, ap=63.8),
    Published("AIGI", "CLIPSeg (PC+)", 56.4, ap=79.0),
    Published("AIGI", "SEEM", 57.4, ap=70.0),
    Published("AIGI", "RGBNet", 63.4, ap=84.1),
    Published("AIGI", "ZNet", 68.4, ap=85.0),
    Published("AIGI", "LD-ZNet", 74.1, ap=89.6),
    Published("RefCOCO", "CLIPSeg (PC+)", iou=30.1, ap=14.1),
    Published("RefCOCO", "RGBNet", iou=36.3, ap=15.7),
    Published("RefCOCO", "ZNet", iou=40.1, ap=16.8),
    Published("RefCOCO", "LD-ZNet", iou=41.0, ap=17.2),
    Published("RefCOCO+", "CLIPSeg (PC+)", iou=30.3, ap=15.5),
    Published("RefCOCO+", "RGBNet", iou=37.1, ap=16.7),
    Published("RefCOCO+", "ZNet", iou=40.9, ap=17.8),
    Published("RefCOCO+", "LD-ZNet", iou=42.5, ap=18.6),
    Published("RefCOCOg", "CLIPSeg (PC+)", iou=33.8, ap=23.7),
    Published("RefCOCOg", "RGBNet", iou=41.9, ap=27.8),
    Published("RefCOCOg", "ZNet", iou=47.1, ap=29.2),
    Published("RefCOCOg", "LD-ZNet", iou=47.8, ap=30.8),
)


def rows_of(table: str | None) -> list[Published]:
    """The published rows of a table of `TABLES`; none where there is no table."""
    return [row for row in PUBLISHED if table and row.dataset == TABLES[table]]

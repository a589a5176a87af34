"""What the presence of a phrase tells: `python benchmarks/presence.py mini-build/world.zip [scenes]`.

Every noun of the miniature is looked for in every validation scene (`validation.py`). Prints how well
presence parts what is there from what is not, draws the curve of it as docs/pictures/presence.png, and writes
benchmarks/results/presence.json.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from validation import validation
from writing import setting, write_result

from ldznet_core import load_backbone
from ldznet_core.evaluation.batches import by_picture
from ldznet_core.evaluation.metrics import PhraseMetrics
from ldznet_core.segment.attention import AttentionSegmenter
from ldznet_core.segment.base import PRESENT
from ldznet_core.segment.examples import latents_of

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "presence.png"
COLUMNS = ("present kept", "absent kept", "absent: area", "mIoU")
LEAST = (0.0, 2.0, 2.5, 3.0, 3.5, 4.0)
FINE, SIDE, MARGIN = 3, 360, 64  # drawn larger and shrunk, because Pillow does not smooth lines
BESIDE, ABOVE = (9, 6, "lt"), (8, -9, "rb")  # where a point's label stands, and that of the default
INK, PALE, BLUE, ORANGE = (22, 24, 28), (196, 200, 206), (0, 114, 178), (213, 94, 0)


def chart(there: Tensor, not_there: Tensor, area: float) -> Image.Image:
    """The share of present phrases that is kept over that of absent ones, for every least presence.

    `there` and `not_there` are presences of phrases; `area` is that under the curve.
    """
    whole = (SIDE + 2 * MARGIN) * FINE
    canvas = Image.new("RGB", (whole, whole), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14 * FINE)

    def at(x: float, y: float) -> tuple[float, float]:
        return (MARGIN + x * SIDE) * FINE, (MARGIN + (1 - y) * SIDE) * FINE

    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        pen.line((*at(tick, 0), *at(tick, 1)), PALE, FINE)
        pen.line((*at(0, tick), *at(1, tick)), PALE, FINE)
        pen.text(at(tick, -0.02), f"{tick:.0%}", INK, font, anchor="mt")
        pen.text(at(-0.02, tick), f"{tick:.0%}", INK, font, anchor="rm")
    pen.line((*at(0, 0), *at(1, 1)), PALE, 2 * FINE)
    pen.text(at(0.5, -0.11), "absent phrases that are marked all the same", INK, font, anchor="mt")
    pen.text((MARGIN * FINE, 0.35 * MARGIN * FINE), "present phrases that are kept", INK, font, anchor="lt")
    pen.text(at(0.98, 0.04), f"area under the curve {area:.2f}", INK, font, anchor="rb")

    def kept(least: float) -> tuple[float, float]:
        return float((not_there >= least).float().mean()), float((there >= least).float().mean())

    levels = torch.cat([there, not_there]).quantile(torch.linspace(0, 1, 201)).tolist()
    pen.line([at(0, 0), *(at(*kept(level)) for level in reversed(levels)), at(1, 1)], BLUE, 3 * FINE, joint="curve")
    for least in LEAST[1:]:
        x, y = at(*kept(least))
        radius, colour = (6 * FINE, ORANGE) if least == PRESENT else (4 * FINE, BLUE)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        label = f"{least} (default)" if least == PRESENT else f"{least}"
        right, down, anchor = ABOVE if least == PRESENT else BESIDE
        pen.text((x + right * FINE, y + down * FINE), label, colour, font, anchor=anchor)
    return canvas.resize((whole // FINE, whole // FINE), Image.Resampling.LANCZOS)


def main(pack: Path, count: int) -> None:
    backbone = load_backbone("mini")
    nouns = backbone.model.about["nouns"]
    pictures = list(by_picture(validation(backbone, pack, count)))
    finder, presence, areas, masks = AttentionSegmenter(backbone), [], [], {}
    present = [[e for e in picture if e.mask.any()] for picture in pictures]
    for here in present:  # masks of all nouns in all scenes would be 0.3 GB
        found = finder.predict_latent(latents_of(backbone, here[:1]).cpu(), nouns)
        presence.append(found.presence[0])
        areas.append((found.masks[0] > 0.5).float().mean((1, 2)))
        masks |= {(e.picture, e.phrase): found.masks[0, nouns.index(e.phrase)] for e in here}
    presence, areas = torch.stack(presence), torch.stack(areas)  # [scenes, nouns]
    is_there = torch.tensor([[noun in {e.phrase for e in here} for noun in nouns] for here in present])
    there, not_there = presence[is_there], presence[~is_there]
    # A random present phrase against a random absent one.
    area = float((there[:, None] > not_there[None]).float().mean())
    print(f"{count} scenes, {len(there)} present phrases, {len(not_there)} absent ones")
    print(f"area under the curve: {area:.3f}\n")
    asked = [e for here in present for e in here]
    truth = torch.stack([torch.from_numpy(e.mask) for e in asked])
    tried = {}
    for least in LEAST:
        metrics = PhraseMetrics()
        metrics.update(torch.stack([
            masks[e.picture, e.phrase] * (presence[int(e.picture), nouns.index(e.phrase)] >= least) for e in asked
        ]), truth)
        left = areas[~is_there] * (not_there >= least)
        shares = ((there >= least).float().mean(), (not_there >= least).float().mean(), left.mean())
        values = (*map(float, shares), metrics.compute().miou)
        tried[str(least)] = dict(zip(COLUMNS, (round(100 * value, 1) for value in values), strict=True))
        print(least, tried[str(least)])
    chart(there, not_there, area).save(PICTURE, optimize=True)
    about = {"scenes": count, "present": len(there), "absent": len(not_there), "area under the curve": round(area, 3)}
    settings = {"attention: least presence": setting(str(PRESENT), tried, *COLUMNS)}
    write_result("presence", "presence.py mini-build/world.zip", **about, settings=settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150)

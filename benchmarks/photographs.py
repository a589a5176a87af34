"""Masks in photographs: `python benchmarks/photographs.py mini-build fruits-360-3-body-problem [scenes]`.

The miniature never saw a photograph of a thing. Here things are cut out of photographs and composed on photographed
backgrounds that were kept from training: apples of many kinds (Fruits-360 by M. Oltean, CC BY-SA 4.0, a clone of
github.com/fruits-360/fruits-360-3-body-problem), and by hand a cat and a rocket of scikit-image (public domain), a
ladybird of mate-backgrounds (GPL-2+) and two dogs of lomiri-wallpapers (CC BY-SA 4.0), both of which the step `pack`
fetched. Writes benchmarks/results/photographs.json and the first scenes with their masks to mini-build/photographs.png.
"""

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from evaluate import bundled, rounded
from PIL import Image, ImageDraw, ImageFilter
from skimage import data
from writing import write_result

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.evaluation.tables import Evaluation, table
from ldznet_core.imaging.sheets import sheet
from ldznet_core.imaging.visualize import overlay
from ldznet_core.mini.drawing import cut_out
from ldznet_core.mini.evaluation import COUNTS, SEED, examples
from ldznet_core.mini.sprites import Background, Sprite, load_pack
from ldznet_core.mini.world import COLOUR_RGB, Scene, compose

VIEWS = 3  # of each kind of apple
# Outlines (x, y) in pixels, drawn by hand.
CAT = [(42, 10), (55, 0), (400, 0), (375, 40), (360, 60), (365, 110), (360, 150), (345, 190), (330, 230), (300, 270),
       (255, 285), (200, 285), (150, 299), (0, 299), (0, 170), (30, 140), (45, 100), (35, 60)]  # fmt: skip
ROCKET = [(323, 127), (330, 140), (333, 155), (333, 260), (331, 300), (332, 405), (312, 405), (313, 300), (312, 200),
          (311, 150), (316, 137)]  # fmt: skip
LADYBUG = [(1683, 832), (1690, 800), (1702, 775), (1720, 752), (1745, 730), (1775, 714), (1800, 710), (1830, 715),
           (1860, 733), (1885, 760), (1903, 790), (1915, 815), (1921, 832), (1900, 834), (1880, 828), (1870, 845),
           (1905, 862), (1900, 880), (1850, 890), (1800, 898), (1750, 893), (1728, 900), (1705, 890), (1695, 865),
           (1720, 850), (1675, 845), (1672, 836)]  # fmt: skip
DOGS = (
    [(700, 745), (760, 715), (840, 712), (900, 722), (955, 750), (985, 800), (1020, 835), (1050, 880), (1068, 970),
     (1068, 1080), (1050, 1180), (1020, 1240), (975, 1245), (935, 1225), (935, 1160), (905, 1160), (870, 1140),
     (830, 1090), (790, 1040), (785, 1100), (770, 1170), (720, 1205), (660, 1185), (640, 1120), (655, 1050),
     (632, 960), (630, 860), (650, 790)],
    [(1000, 1450), (1040, 1400), (1110, 1385), (1180, 1390), (1240, 1430), (1280, 1480), (1330, 1490), (1365, 1560),
     (1370, 1680), (1355, 1800), (1320, 1870), (1270, 1860), (1240, 1790), (1210, 1770), (1190, 1790), (1140, 1760),
     (1120, 1810), (1160, 1870), (1195, 1940), (1170, 2000), (1080, 2005), (1040, 1960), (1045, 1880), (1020, 1790),
     (975, 1740), (965, 1640), (980, 1540)],
)  # fmt: skip


def apples(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Cut-outs of white photographs that the fruit nearly fills."""
    for kind in sorted((folder / "Test" / "Apple").iterdir()):
        files = sorted(kind.iterdir())
        for file in files[:: max(1, len(files) // VIEWS)][:VIEWS]:
            picture = np.asarray(Image.open(file).convert("RGB"))
            found = cut_out(np.pad(picture, ((20, 20), (20, 20), (0, 0)), constant_values=255))
            if found is not None:
                yield "apple", found


def outlined(picture: Image.Image, outline: list[tuple[int, int]]) -> np.ndarray:
    """A thing within its outline, as RGBA of at most 256 pixels a side."""
    alpha = Image.new("L", picture.size)
    ImageDraw.Draw(alpha).polygon(outline, fill=255)
    picture.putalpha(alpha.filter(ImageFilter.GaussianBlur(1)))
    thing = picture.crop(alpha.getbbox())
    thing.thumbnail((256, 256))
    return np.asarray(thing)


def packaged(deb: Path, name: str) -> Image.Image:
    """A picture of a Debian package."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        (member,) = (one for one in archive.getmembers() if one.name.endswith(name))
        return Image.open(archive.extractfile(member)).convert("RGB")


def cut_by_hand(art: Path) -> Iterator[tuple[str, np.ndarray]]:
    yield "cat", outlined(Image.fromarray(data.chelsea()), CAT)
    yield "rocket", outlined(Image.fromarray(data.rocket()), ROCKET)
    (mate,), (lomiri,) = art.glob("mate-backgrounds*.deb"), art.glob("lomiri-wallpapers*.deb")
    yield "ladybug", outlined(packaged(mate, "LadyBird.jpg"), LADYBUG)
    for outline in DOGS:
        yield "dog", outlined(packaged(lomiri, "friends_by_Aitzol_Berasategi.jpg"), outline)


def scenes(things: list[tuple[str, np.ndarray]], backgrounds: list[Background], count: int) -> Iterator[Scene]:
    """Scenes of two and three things, none of them on a plain colour."""
    sprites = [Sprite(noun, noun, "photograph", "test", noun, None, rgba) for noun, rgba in things]
    rng = np.random.default_rng(SEED)
    while count:
        scene = compose(rng, sprites, backgrounds, 256, COUNTS)
        if scene.background not in COLOUR_RGB:
            count -= 1
            yield scene


def main(folder: Path, fruits: Path, count: int = 100) -> None:
    torch.set_num_threads(1)
    backbone = load_backbone("mini")
    backgrounds = [b for b in load_pack(folder / "world.zip").backgrounds if b.split == "test"]
    things = [*apples(fruits), *cut_by_hand(folder / "art")]
    found = list(scenes(things, backgrounds, count))
    show(found[:8], folder / "photographs.png")
    dataset = examples(found, backbone.model.about["nouns"])
    measured = table(backbone, bundled(), "photographs", dataset, Evaluation(edges=True))
    rows = [rounded(row.as_dict()) for row in measured]
    command = f"photographs.py mini-build fruits-360-3-body-problem {count}"
    write_result("photographs", command, **{"scenes": count, "cut-outs": len(things), "rows": rows})
    for row in rows:
        print(row["method"], row["refined"], row["miou"], row["false_area"])


def show(found: list[Scene], path: Path) -> None:
    """Scenes with the masks of the light decoder."""
    segment, pictures, titles = Segmenter(load_backbone("mini"), load_decoder("mini", kind="light")), [], []
    for scene in found:
        image = torch.from_numpy(scene.image)[None] / 255
        nouns = list(dict.fromkeys(thing.sprite.noun for thing in scene.things))
        pictures += [scene.image, np.asarray(overlay(image[0], segment(image, nouns)[0], nouns).resize((256, 256)))]
        titles += [scene.caption, "light"]
    sheet(pictures, titles, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))

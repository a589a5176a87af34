"""Pictures whose pixels are all there are read, whatever else their files hold."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldznet_core.errors import InputError
from ldznet_core.imaging.images import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (33, 35, 3), np.uint8)
LARGE = bytes(2**21)  # more than Pillow unpacks of a text or a profile


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(path, extra, image=None, after_pixels=False):
    """A PNG with one more chunk behind its header, or behind its pixels."""
    (Image.fromarray(PIXELS) if image is None else image).save(path)
    whole = path.read_bytes()
    place = len(whole) - 12 if after_pixels else 33
    path.write_bytes(whole[:place] + extra + whole[place:])
    return path


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"huge\0\0" + zlib.compress(LARGE)),
        chunk(b"iCCP", b"odd\0\7"),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE)),
        chunk(b"tEXt", b"parameters\0" + bytes(100))[:-4] + b"\0\0\0\0",  # a wrong checksum
        chunk(b"eXIf", b"garbage"),
        chunk(b"pHYs", b"\0"),
        chunk(b"acTL", b"\0"),
        chunk(b"caBX", b"content credentials"),
    ],
    ids=["large profile", "odd profile", "large text", "large utf-8 text", "wrong checksum", "garbage exif",
         "short resolution", "short animation", "unknown"],
)  # fmt: skip
def test_metadata_does_not_stop_a_png(tmp_path, extra, after_pixels):
    image = read_image(with_chunk(tmp_path / "a.png", extra, after_pixels=after_pixels))
    assert (np.asarray(image) == PIXELS).all()


def test_a_salvaged_png_keeps_its_orientation_and_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    large = chunk(b"zTXt", b"a\0\0" + zlib.compress(LARGE))
    turn = chunk(b"eXIf", exif.tobytes()[6:])
    assert read_image(with_chunk(tmp_path / "a.png", turn + large)).size == (33, 35)

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    image = read_image(with_chunk(tmp_path / "b.png", large, palette))
    assert np.asarray(image).tolist() == [[[0, 0, 255], [255, 255, 255]]]


@pytest.mark.filterwarnings("ignore:Tag data")
def test_orientation_is_read_where_the_rest_of_the_exif_is_garbage(tmp_path):
    ifd = struct.pack(">HHHIHH", 2, 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x9003, 2, 500, 2**31) + bytes(4)
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08" + ifd)
    assert read_image(tmp_path / "a.jpg").size == (33, 35)
    Image.fromarray(PIXELS).save(tmp_path / "b.jpg", exif=b"Exif\0\0garbage")
    assert read_image(tmp_path / "b.jpg").size == (35, 33)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_short_of_its_end_marker_is_whole_and_any_shorter_is_damaged(tmp_path, options):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", **options)
    whole, pixels = (tmp_path / "a.jpg").read_bytes(), np.asarray(Image.open(tmp_path / "a.jpg"))
    for missing in (1, 2):
        (tmp_path / "cut.jpg").write_bytes(whole[:-missing])
        assert (np.asarray(read_image(tmp_path / "cut.jpg")) == pixels).all()
    for missing in (4, 20, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.jpg").write_bytes(whole[:-missing])
        with pytest.raises(InputError, match="cut.jpg"):
            read_image(tmp_path / "cut.jpg")


def test_a_png_short_of_its_end_is_whole_and_one_short_of_pixels_is_damaged(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for missing in (1, 12, 16):
        (tmp_path / "cut.png").write_bytes(whole[:-missing])
        assert (np.asarray(read_image(tmp_path / "cut.png")) == PIXELS).all()
    for missing in (100, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.png").write_bytes(whole[:-missing])
        with pytest.raises(InputError, match="cut.png"):
            read_image(tmp_path / "cut.png")


def test_a_large_profile_does_not_hide_missing_pixels(tmp_path):
    large = chunk(b"iCCP", b"huge\0\0" + zlib.compress(LARGE))
    file = with_chunk(tmp_path / "a.png", large)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_image(file)

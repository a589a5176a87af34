import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldznet_core.errors import InputError
from ldznet_core.imaging.images import read_image, to_rgb, to_tensor, write_png
from ldznet_core.segment.sizing import working_size


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


@pytest.mark.parametrize("size", [(1, 1), (8000, 37)])
def test_reads_any_size(tmp_path, size):
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.size == size and image.getpixel((0, 0)) == (10, 20, 30)


def test_reads_greyscale(tmp_path):
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "a.png")
    assert pixels(read_image(tmp_path / "a.png")) == [[[0] * 3, [128] * 3, [255] * 3]]


def test_reads_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 200 and green < 50 and blue < 50


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_keeps_its_range(tmp_path, suffix):
    Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)).save(tmp_path / f"a.{suffix}")
    assert pixels(read_image(tmp_path / f"a.{suffix}")) == [[[0] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize("values", [[0.0, 0.5, 1.0], [0.0, 127.5, 255.0], [-1.0, 0.0, 1.0], [0.0, 5e4, 1e5]])
def test_float_pictures_are_scaled_not_clipped(tmp_path, values):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    assert pixels(read_image(tmp_path / "a.tif")) == [[[0] * 3, [128] * 3, [255] * 3]]


def test_values_that_are_not_finite_are_at_the_ends_of_the_range(tmp_path):
    nan, inf = float("nan"), float("inf")
    Image.fromarray(np.array([[nan, -inf, 0.0, 0.2, 1.0, inf]], np.float32)).save(tmp_path / "a.tif")
    assert [pixel[0] for pixel in pixels(read_image(tmp_path / "a.tif"))[0]] == [0, 0, 0, 51, 255, 255]
    Image.fromarray(np.array([[nan, inf]], np.float32)).save(tmp_path / "b.tif")
    assert "finite" in refusal(tmp_path / "b.tif")


def test_32_bit_integers_beyond_16_bit_are_stretched():
    image = Image.fromarray(np.array([[-100, 100_000, 200_100]], np.int32))
    assert pixels(to_rgb(image)) == [[[0] * 3, [128] * 3, [255] * 3]]


def test_a_flat_deep_picture_does_not_divide_by_zero():
    assert pixels(to_rgb(Image.new("F", (1, 1), -3.0))) == [[[0] * 3]]


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert pixels(read_image(tmp_path / "a.png")) == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]


def test_transparent_grey_and_palette_are_laid_on_white(tmp_path):
    Image.fromarray(np.array([[[0, 255], [0, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert pixels(read_image(tmp_path / "la.png")) == [[[0] * 3, [255] * 3]]

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert pixels(read_image(tmp_path / "p.png")) == [[[0, 0, 255], [255, 255, 255]]]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    image.save(tmp_path / "a.jpg", exif=exif)
    upright = read_image(tmp_path / "a.jpg")
    assert upright.size == (8, 16)
    assert upright.getpixel((4, 2))[0] > 200 and upright.getpixel((4, 13))[0] < 50


def test_refuses_a_missing_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "gone.png")


def test_refuses_a_name_that_no_file_can_have():
    for name in ("a\0.png", "n" * 300 + ".png"):
        with pytest.raises(InputError, match="png"):
            read_image(name)


def test_refuses_a_folder(tmp_path):
    assert "folder" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, I am a text"])
def test_refuses_what_is_not_a_picture(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert "not a picture" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_refuses_a_truncated_file(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    refusal(tmp_path / f"cut.{suffix}")


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_refuses_a_decompression_bomb_whatever_the_host_set(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000) + b"\0\0\0\0IDAT")
    assert "178 megapixels" in refusal(tmp_path / "bomb.png")


def test_refuses_a_side_of_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(0, 4) + b"\0\0\0\0IDAT")
    refusal(tmp_path / "a.png")


def test_a_pillow_picture_becomes_a_batch_of_one():
    batch = to_tensor(Image.new("L", (3, 2), 51))
    assert batch.shape == (1, 2, 3, 3) and batch.dtype == torch.float32
    assert batch[0, 0, 0].tolist() == pytest.approx([0.2] * 3)


def test_float_batches_pass_and_overshoot_is_clamped():
    assert to_tensor(np.full((2, 1, 1, 3), 1.02)).tolist() == torch.ones(2, 1, 1, 3).tolist()
    assert to_tensor(torch.full((1, 1, 1, 3), -0.01, dtype=torch.float16)).tolist() == [[[[0.0, 0.0, 0.0]]]]


def test_the_callers_array_is_left_alone():
    mine = np.full((1, 1, 1, 3), 0.5, np.float32)
    to_tensor(mine).zero_()
    assert mine[0, 0, 0, 0] == 0.5


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (torch.zeros(4, 4, 3), r"\[4, 4, 3\]"),
        (torch.zeros(1, 3, 4, 4), r"\[1, 3, 4, 4\]"),
        (torch.zeros(1, 0, 4, 3), r"\[1, 0, 4, 3\]"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), r"uint8 \[1, 4, 4, 3\]"),
        (np.zeros((1, 4, 4, 4), np.float32), r"\[1, 4, 4, 4\]"),
        (np.zeros((1, 4, 4, 3), np.int64), r"int64 \[1, 4, 4, 3\]"),
        (torch.full((1, 2, 2, 3), float("nan")), r"\[1, 2, 2, 3\] .*NaN"),
        (torch.full((1, 2, 2, 3), 255.0), r"from 255 to 255"),
        ("cat.png", "got str"),
    ],
)
def test_refuses_other_tensors_by_name(image, named):
    with pytest.raises(InputError, match=named):
        to_tensor(image)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (512, 512)),
        (1, 1, (512, 512)),
        (768, 512, (640, 448)),
        (37, 8000, (192, 1536)),
        (8000, 37, (1536, 192)),
    ],
)
def test_working_size_keeps_area_and_aspect(height, width, expected):
    assert working_size(height, width, area=512 * 512, multiple=64) == expected


def test_working_size_has_at_least_one_multiple_and_at_most_eight_to_one():
    assert working_size(10, 10, area=1, multiple=64) == (64, 64)
    for width in range(1, 400, 7):
        rows, columns = working_size(20, width, area=128 * 128, multiple=32)
        assert 1 / 8 <= columns / rows <= 8


def test_working_size_refuses_an_empty_picture():
    with pytest.raises(InputError, match="5x0"):
        working_size(0, 5, area=64, multiple=8)


def test_writes_into_folders_that_do_not_exist_yet(tmp_path):
    write_png(tmp_path / "a" / "b" / "c.png", Image.new("L", (1, 1), 7))
    assert read_image(tmp_path / "a" / "b" / "c.png").getpixel((0, 0)) == (7, 7, 7)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write c.png into .*file"):
        write_png(tmp_path / "file" / "c.png", Image.new("L", (1, 1)))


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", Image.new("L", (1, 1), 7))

    def full(self, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="the disk is full"):
        write_png(tmp_path / "a.png", Image.new("L", (1, 1), 9))
    assert os.listdir(tmp_path) == ["a.png"]
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (7, 7, 7)

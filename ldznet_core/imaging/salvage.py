"""Pictures whose pixels are all there although Pillow refuses the file.

Pillow gives up on a PNG for a text or colour profile that unpacks to more than it allows or fails its checksum, and on
a JPEG that lacks only its end marker. No mask needs either.
"""

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
PIXELS = (b"IHDR", b"PLTE", b"IDAT")
HELPFUL = (b"tRNS", b"eXIf")  # transparency and orientation, kept where their checksum holds


def salvage(path: Path, most: int) -> Image.Image | None:
    """The loaded picture in a PNG or JPEG file that Pillow refuses. None where pixels are missing, or there are more
    than `most`, or the file is in another format."""
    try:
        data = path.read_bytes()
        if data.startswith(PNG):
            return loaded(PNG + b"".join(needed_chunks(data)), most)
        if data.startswith(JPEG):
            return complete_jpeg(data, most)
    except Exception:  # decoders raise nearly anything
        return None
    return None


def loaded(data: bytes, most: int) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > most:
        raise Image.DecompressionBombError
    image.load()
    return image


def needed_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks of a PNG that its pixels need, each with its length and checksum."""
    start = len(PNG)
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        kind, body, checksum = data[start + 4 : start + 8], data[start + 4 : end - 4], data[end - 4 : end]
        if kind in PIXELS or (kind in HELPFUL and checksum == zlib.crc32(body).to_bytes(4, "big")):
            yield data[start:end]
        start = end


def complete_jpeg(data: bytes, most: int) -> Image.Image | None:
    """A JPEG with its end marker put back, None where pixels are missing as well.

    The decoder fills what is missing with whatever follows: so pixels are missing where they depend on it.
    """
    body = data.rstrip(b"\xff")  # half an end marker
    image, other = (loaded(body + filler * 64 + JPEG_END, most) for filler in (b"\x00", b"\xaa"))
    return image if image.tobytes() == other.tobytes() else None

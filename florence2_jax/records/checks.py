# SPDX-License-Identifier: Apache-2.0
"""What importers mend and what they set aside, image by image and annotation by annotation.

Every `mend_*` takes a ledger and a place (`where`), counts what it changed as repaired, and returns
None after setting aside what cannot be mended. The rules:

- A box turned inside out is swapped, one that leaves the image is clipped. Without an area, or
  outside of the image, it is set aside.
- The file's header is believed about the size of an image. An annotation file that gives none, or
  one that is off by at most a pixel, is repaired. One that gives another size speaks of another
  version of the image, so that its boxes would lie in wrong places: regions are set aside, texts
  stay. No box is ever scaled.
- Stored pixels count, not how a viewer turns them by the EXIF orientation; only where the
  annotations give the turned size is the image turned, losslessly, into a PNG.
- JPEG, PNG and WebP pass byte by byte, up to 16 MiB; other formats become PNG, or JPEG where the
  PNG would have more than that. Whether an image is whole is told from its file where it can be
  (`containers.py`), else by decoding it.
"""

import dataclasses
import errno
import io
import math
import os
import re
import stat
import warnings
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from florence2_jax.records.containers import is_whole
from florence2_jax.records.ledger import Ledger
from florence2_jax.typing import Box, Polygon, Quad, Size

MAX_IMAGE_PIXELS = 2**26
"""Images of more pixels (8192 x 8192) are not decoded. Below the bound of Pillow itself."""

MAX_IMAGE_BYTES = 2**24
"""Images of more bytes are not stored as they are."""

MAX_FILE_BYTES = 2**28
"""Files of more bytes are not read. An image of `MAX_IMAGE_PIXELS` has fewer in any format."""

JPEG_QUALITY = 95
"""Where an image must be encoded again, in the scale of libjpeg."""

_KEPT_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")  # MPO: a JPEG with more images behind the first.
_READ_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112  # The EXIF tag.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class ImageError(ValueError):
    """Bytes that are no image we read. The message says why, without the name of the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MendedImage:
    """An image that decodes. `is_as_annotated`: boxes of its annotation file lie in its pixels."""

    data: bytes
    size: Size
    is_as_annotated: bool = True


def open_image(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Opens an image by its header; no pixel is decoded before their number is known.

    Raises:
        ImageError: if the bytes are no image of a known format, or too large a one.
    """
    Image.init()  # Else Pillow knows some formats only after it has met others.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_READ_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"more than {max_pixels} pixels") from error
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead to.
        raise ImageError("no image of a known format, or cut off") from error
    if image.width * image.height > max_pixels:
        raise ImageError(f"more than {max_pixels} pixels")
    return image


def check_decodes(image: Image.Image) -> None:
    """Decodes a freshly opened image. Raises ImageError if it is truncated or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.draft(None, (1, 1))  # JPEG: all bytes are read, an eighth of the pixels made.
            image.load()
    except Exception as error:  # As in `open_image`.
        raise ImageError("truncated or damaged") from error


def to_rgb(image: Image.Image, *, upright: bool = False) -> Image.Image:
    """The pixels as 8-bit RGB, of the first frame.

    Where something shines through, white is behind it; 16 bits lose their lower eight. Pillow's own
    conversion would show the hidden colours of transparent pixels and clip 16 bits to white.

    Args:
        upright: turn the image as its EXIF orientation says; its size may change.

    Raises:
        ImageError: if it is truncated or damaged, or has pixels of no defined range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            if upright and _orientation(image) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                image = _from_deep(image)
            elif image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image if image.mode == "RGB" else image.convert("RGB")  # No copy.
    except ImageError:
        raise
    except Exception as error:  # As in `open_image`.
        raise ImageError("truncated or damaged") from error


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, which Pillow may hold in 32, as grey of 8."""
    pixels = np.asarray(image)
    if image.mode == "F" or (image.mode == "I" and not 0 <= pixels.min() <= pixels.max() < 2**16):
        raise ImageError("its pixels have no defined range: save it with 8 or 16 bits")
    return Image.fromarray((pixels.astype(np.uint32) >> 8).astype(np.uint8))


def mend_image(
    data: bytes, ledger: Ledger, where: str, *, stated_size: tuple[Any, Any] | None = None
) -> MendedImage | None:
    """The bytes to store of an image, with its size by header; None where it does not decode.

    `stated_size` is the `(width, height)` of the annotation file, in pixels. Keeps no count of
    images read or kept: that is the importer's.
    """
    stated = _whole_numbers(stated_size)
    try:
        image = open_image(data)
        size, format_ = image.size, image.format or ""
        if not is_whole(data, format_):
            check_decodes(image)  # Before the EXIF block, whose reader swallows errors of pixels.
        orientation = _orientation(image, data)
        is_turned = stated != size and stated == size[::-1] and orientation >= 5
        if how := _why_anew(data, format_, is_turned):
            pixels = to_rgb(open_image(data), upright=is_turned)
            data, stored_as = _encoded(pixels)
            ledger.repair("image", f"{how} stored as {stored_as}")
            size = pixels.size
    except ImageError as error:
        ledger.set_aside("image", str(error), where=where)
        return None
    if stated == size:
        if orientation != 1 and not is_turned:
            ledger.note("image", "EXIF orientation not applied: boxes are of the stored pixels")
        return MendedImage(data=data, size=size)
    if stated is None:
        if stated_size is not None:
            ledger.repair("image", "size taken from the file, the annotation has none")
        return MendedImage(data=data, size=size)
    if max(abs(a - b) for a, b in zip(stated, size, strict=True)) <= 1:
        ledger.repair("image", "size off by a pixel, taken from the file")
        return MendedImage(data=data, size=size)
    ledger.note("image", "annotated at another size: regions set aside")
    return MendedImage(data=data, size=size, is_as_annotated=False)


def _why_anew(data: bytes, format_: str, is_turned: bool) -> str:
    """Why an image cannot pass byte by byte; empty if it can."""
    if is_turned:
        return "turned as its EXIF orientation says,"
    if format_ not in _KEPT_FORMATS:
        return format_
    return f"{format_} of more than 16 MiB" if len(data) > MAX_IMAGE_BYTES else ""


def _encoded(pixels: Image.Image) -> tuple[bytes, str]:
    """The bytes of an image, as PNG if that is small enough, and the name of their format."""
    if len(data := encode(pixels, "PNG")) <= MAX_IMAGE_BYTES:
        return data, "PNG"
    return encode(pixels, "JPEG"), "JPEG"


def encode(pixels: Image.Image, format_: str) -> bytes:
    """An image as PNG, or as JPEG or WebP of `JPEG_QUALITY`; nothing but pixels goes along."""
    bare = Image.new(pixels.mode, pixels.size)
    bare.paste(pixels)  # EXIF would turn them once more, profiles are of the colours before.
    out = io.BytesIO()
    bare.save(out, format_, **({} if format_ == "PNG" else {"quality": JPEG_QUALITY}))
    return out.getvalue()


@runtime_checkable
class _File(Protocol):
    @property
    def name(self) -> str: ...

    def exists(self) -> bool: ...

    def read_bytes(self) -> bytes: ...


def read_bytes(file: _File, ledger: Ledger, where: str) -> bytes | None:
    """The bytes of an image's file; one that is missing or cannot be read is set aside."""
    try:
        return read_regular(file) if isinstance(file, Path) else file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have.
        why = "its file cannot be read" if _exists(file) else "its file is missing"
        reason = error.strerror if isinstance(error, OSError) else str(error)
        ledger.set_aside("image", why, where=where, value=f"{file.name}: {reason}")
        return None


def _exists(file: _File) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):
        return False


def read_regular(path: Path, *, start: int = 0, size: int | None = None) -> bytes:
    """`size` bytes of a file from `start` on, or all; fewer if it ends before.

    Raises:
        OSError: if it is a pipe or a device (which is never waited for), or more than
            `MAX_FILE_BYTES` are to be read.
    """

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        size = status.st_size - start if size is None else size
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"more than {MAX_FILE_BYTES >> 20} MiB")
        file.seek(start)
        return file.read(max(0, size))


def read_image(
    path: Path, ledger: Ledger, where: str, *, stated_size: tuple[Any, Any] | None = None
) -> MendedImage | None:
    """`mend_image` of a file; one that is missing or cannot be read is set aside."""
    data = read_bytes(path, ledger, where)
    return None if data is None else mend_image(data, ledger, where, stated_size=stated_size)


def mend_box(
    box: Iterable[Any], size: Size, ledger: Ledger, where: str, kind: str = "region"
) -> Box | None:
    """A box `x0, y0, x1, y1` in pixels as a record may hold it, in numbers a store can hold."""
    given = list(box)
    values = _floats(given)
    if values is None or len(values) != 4:
        ledger.set_aside(kind, "box is not four finite numbers", where=where, value=_json(given))
        return None
    x0, y0, x1, y1 = values
    if x0 == x1 or y0 == y1:
        ledger.set_aside(kind, "box without area", where=where, value=_json(given))
        return None
    if x0 > x1 or y0 > y1:
        ledger.repair(kind, "box was turned inside out")
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    width, height = size
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        ledger.set_aside(kind, "box outside of the image", where=where, value=_json(given))
        return None
    if inside != (x0, y0, x1, y1):
        ledger.repair(kind, "box clipped to the image")
    return inside


def mend_polygon(polygon: Iterable[Any], size: Size, ledger: Ledger, where: str) -> Polygon | None:
    """A ring of points `x, y, ...`, clipped point by point; None with fewer than three points.

    Counts the polygon as read, and as kept where it is.
    """
    given = list(polygon)
    ledger.read("polygon")
    values = _floats(given)
    if values is None or len(values) % 2:
        ledger.set_aside("polygon", "not pairs of finite numbers", where=where, value=_json(given))
        return None
    if len(values) > 6 and values[:2] == values[-2:]:
        values = values[:-2]
        ledger.repair("polygon", "repeated first point dropped")
    if len(values) < 6:
        ledger.set_aside("polygon", "fewer than three points", where=where, value=_json(given))
        return None
    if _lies_within(values, size):  # As most do, and told in a fraction of the time.
        ledger.keep("polygon")
        return tuple(values)
    points = np.array(values).reshape(-1, 2)
    clipped = points.clip(0, size)
    if np.ptp(clipped, axis=0).min() == 0:
        ledger.set_aside("polygon", "no area within the image", where=where, value=_json(given))
        return None
    if not np.array_equal(points, clipped):
        ledger.repair("polygon", "points moved into the image")
    ledger.keep("polygon")
    return tuple(clipped.reshape(-1).tolist())


def _lies_within(values: Sequence[float], size: Size) -> bool:
    """Whether points `x, y, ...` are all in the image, and not all on a line along a side."""
    xs, ys = values[::2], values[1::2]
    return 0 <= min(xs) < max(xs) <= size[0] and 0 <= min(ys) < max(ys) <= size[1]


def mend_quad(quad: Iterable[Any], size: Size, ledger: Ledger, where: str) -> Quad | None:
    """Four corners `x, y, ...` of a piece of writing, clipped point by point.

    Counts the quad as read, and as kept where it is. Their order is the file's, for it tells which
    way the writing goes.
    """
    given = list(quad)
    ledger.read("quad")
    values = _floats(given)
    if values is None or len(values) != 8:
        ledger.set_aside("quad", "not eight finite numbers", where=where, value=_json(given))
        return None
    points = np.array(values).reshape(4, 2)
    clipped = points.clip(0, size)
    if np.ptp(clipped, axis=0).min() == 0:
        ledger.set_aside("quad", "no area within the image", where=where, value=_json(given))
        return None
    if not np.array_equal(points, clipped):
        ledger.repair("quad", "points moved into the image")
    ledger.keep("quad")
    x0, y0, x1, y1, x2, y2, x3, y3 = clipped.reshape(-1).tolist()
    return x0, y0, x1, y1, x2, y2, x3, y3


def mend_text(text: Any, ledger: Ledger, where: str, kind: str = "caption") -> str | None:
    """A text without control characters and blanks around it; None if nothing is left."""
    if not isinstance(text, str):
        ledger.set_aside(kind, "not a text", where=where, value=_json(text))
        return None
    clean = _CONTROL.sub("", text)
    if clean != text:
        ledger.repair(kind, "control characters removed")
    stripped = clean.strip()
    if not stripped:
        ledger.set_aside(kind, "empty", where=where, value=_json(text))
        return None
    if stripped != clean:
        ledger.repair(kind, "blanks around it removed")
    return stripped


def is_safe_name(name: Any) -> bool:
    """Whether a file name of an annotation file stays within the folder it belongs to."""
    if not isinstance(name, str) or not name or _CONTROL.search(name):
        return False
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts


def _whole_numbers(size: Sequence[Any] | None) -> Size | None:
    values = _floats(list(size)) if size is not None else None
    if values is None or len(values) != 2 or min(values) <= 0:
        return None
    return int(values[0]), int(values[1])


def _floats(values: Sequence[Any]) -> list[float] | None:
    """The numbers rounded to float32, as a store holds them; None unless all are finite."""
    try:
        numbers = array("f", map(float, values)).tolist()  # Of few numbers sooner than by NumPy.
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _json(value: Any) -> Any:
    """The value where JSON can say it, how Python writes it otherwise; long ones are cut."""
    if isinstance(value, list) and len(value) <= 64:
        return [_json(item) for item in value]
    if (
        value is None
        or isinstance(value, bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text[:1000].encode("utf-8", "backslashreplace").decode()


def _orientation(image: Image.Image, data: bytes = b"exif") -> int:
    """The EXIF orientation, 1 where there is none. `data` spares decoding a PNG that says nothing.

    In a PNG the block may stand behind the pixels, so that Pillow decodes them to look for it.
    """
    if image.format == "PNG" and b"eXIf" not in data and b"exif" not in data:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # A broken EXIF block does not make the pixels worse.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1

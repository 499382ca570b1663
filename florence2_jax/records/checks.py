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
- JPEG, PNG and WebP pass byte by byte; other formats become PNG.
"""

import dataclasses
import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from florence2_jax.records.ledger import Ledger
from florence2_jax.typing import Box, Polygon, Size

MAX_IMAGE_PIXELS = 2**26
"""Images of more pixels (8192 x 8192) are not decoded. Below the bound of Pillow itself."""

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
            return image.convert("RGB")
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
    try:
        image = open_image(data)
        size, format_ = image.size, image.format
        check_decodes(image)  # Before the EXIF block, whose reader swallows errors of pixels.
        orientation = _orientation(image)
    except ImageError as error:
        ledger.set_aside("image", str(error), where=where)
        return None
    if format_ not in _KEPT_FORMATS:
        data = _as_png(to_rgb(open_image(data)))
        ledger.repair("image", f"{format_} stored as PNG")
    stated = _whole_numbers(stated_size)
    if stated == size:
        if orientation != 1:
            ledger.note("image", "EXIF orientation not applied: boxes are of the stored pixels")
        return MendedImage(data=data, size=size)
    if stated is None:
        if stated_size is not None:
            ledger.repair("image", "size taken from the file, the annotation has none")
        return MendedImage(data=data, size=size)
    if stated == size[::-1] and orientation >= 5:
        turned = to_rgb(open_image(data), upright=True)
        ledger.repair("image", "turned as its EXIF orientation says, stored as PNG")
        return MendedImage(data=_as_png(turned), size=turned.size)
    if max(abs(a - b) for a, b in zip(stated, size, strict=True)) <= 1:
        ledger.repair("image", "size off by a pixel, taken from the file")
        return MendedImage(data=data, size=size)
    ledger.note("image", "annotated at another size: regions set aside")
    return MendedImage(data=data, size=size, is_as_annotated=False)


def read_image(
    path: Path, ledger: Ledger, where: str, *, stated_size: tuple[Any, Any] | None = None
) -> MendedImage | None:
    """`mend_image` of a file; one that is missing or cannot be read is set aside."""
    try:
        data = path.read_bytes()
    except OSError as error:
        why = "its file is missing" if not path.exists() else "its file cannot be read"
        ledger.set_aside("image", why, where=where, value=f"{path.name}: {error.strerror}")
        return None
    return mend_image(data, ledger, where, stated_size=stated_size)


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
    points = np.array(values).reshape(-1, 2)
    clipped = points.clip(0, size)
    if np.ptp(clipped, axis=0).min() == 0:
        ledger.set_aside("polygon", "no area within the image", where=where, value=_json(given))
        return None
    if not np.array_equal(points, clipped):
        ledger.repair("polygon", "points moved into the image")
    ledger.keep("polygon")
    return tuple(clipped.reshape(-1).tolist())


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
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    limit = float(np.finfo(np.float32).max)
    if not all(math.isfinite(x) and abs(x) < limit for x in numbers):
        return None
    return np.array(numbers, np.float32).tolist()


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


def _orientation(image: Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # A broken EXIF block does not make the pixels worse.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _as_png(image: Image.Image) -> bytes:
    image.info.pop("exif", None)  # Else viewers would turn it once more.
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()

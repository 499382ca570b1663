# SPDX-License-Identifier: Apache-2.0
"""Images that say more than they hold, are of other formats, or none at all."""

import io
import struct
import zlib
from typing import Any

from import_helpers import jpeg
from PIL import Image


def png(width: int, height: int, *parts: tuple[bytes, bytes]) -> bytes:
    """A PNG of grey pixels that says it has such a size, with the parts given."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), *parts, (b"IEND", b""))
    checked = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)


def _saved(mode: str, format_: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (40, 30)).save(out, format_, **options)
    return out.getvalue()


def _sof(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that says it has another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


_ZEROS = zlib.compress(bytes(30 * 41), 9)
ODD_IMAGES: dict[str, bytes] = {
    "png bomb": png(60_000, 60_000, (b"IDAT", _ZEROS)),
    "png of 2**31": png(2**31 - 1, 2**31 - 1, (b"IDAT", _ZEROS)),
    "png of nothing": png(0, 0),
    "png just too large": png(8193, 8192, (b"IDAT", _ZEROS)),
    "png of fewer pixels than it says": png(4000, 4000, (b"IDAT", _ZEROS)),
    "png text bomb": png(
        40, 30, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9)), (b"IDAT", _ZEROS)
    ),
    "png profile bomb": png(
        40, 30, (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26), 9)), (b"IDAT", _ZEROS)
    ),
    "png pixel bomb": png(40, 30, (b"IDAT", zlib.compress(bytes(2**26), 9))),
    "jpeg bomb": _sof(jpeg(), 65_500, 65_500),
    "jpeg of other size": _sof(jpeg(), 400, 300),
    "jpeg of no height": _sof(jpeg(), 40, 0),
    "jpeg of other sides": jpeg(30, 40),
    "jpeg alone": b"\xff\xd8\xff\xd9",
    "gif": _saved("P", "GIF"),
    "gif bomb": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\x00\x02\x00;",
    "webp": _saved("RGB", "WEBP"),
    "tiff": _saved("RGB", "TIFF"),
    "tiff of a floating point": _saved("F", "TIFF"),
    "bmp": _saved("RGB", "BMP"),
    "png of 16 bits": _saved("I;16", "PNG"),
    "png with alpha": _saved("RGBA", "PNG"),
    "cmyk": _saved("CMYK", "JPEG"),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n(/etc/passwd) run\n",
    "html": b"<html>404</html>",
    "zip": b"PK\x03\x04" + bytes(40),
    "empty": b"",
}
"""Name -> bytes."""

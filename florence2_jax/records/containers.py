# SPDX-License-Identifier: Apache-2.0
"""Whether the file of an image is whole, told from its frame without decoding a pixel.

A PNG has a checksum on every part, so that a whole one is the file its encoder wrote. JPEG and WebP
have none: there the marks, tables and lengths must be right and the end must be there, which finds
what was cut off or is no image, but not a byte that changed among the pixels. Such an image shows
wrong pixels or stops half way; `records check` decodes every image and names it, and training takes
a substitute for it.

Sources: ITU-T T.81 annex B (JPEG), the PNG specification §5, RFC 9649 (WebP).
"""

import dataclasses
import re
import zlib

_MAX_PARTS = 2**16  # Files of more parts are not walked in Python; they are decoded instead.


def is_whole(data: bytes, format_: str) -> bool:
    """Whether the bytes, which open as `format_`, are whole for certain.

    False is no judgement: decode the image to know. Bytes behind the end are tolerated.
    """
    check = {"JPEG": _is_whole_jpeg, "MPO": _is_whole_jpeg, "PNG": _is_whole_png}
    check["WEBP"] = _is_whole_webp
    return format_ in check and check[format_](data)


_DHT, _DQT, _EOI, _SOS = 0xC4, 0xDB, 0xD9, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # Baseline, extended, progressive: what every decoder reads.
_OTHERS = {0xDD, 0xFE, *range(0xE0, 0xF0)}  # Restarts, comments, applications: read over.
_SIDES = {0x11, 0x12, 0x14, 0x21, 0x22, 0x24, 0x41, 0x42, 0x44}  # 3 has no decoder.
_NEXT_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # Among pixels 0x00 or a restart follow 0xFF.


def _is_whole_jpeg(data: bytes) -> bool:
    at, tables = 2, _Tables()
    for _ in range(_MAX_PARTS):
        if at + 4 > len(data):
            return tables.num_scans > 0 and data[at : at + 2] == b"\xff\xd9"
        if data[at] != 0xFF:
            return False
        marker = data[at + 1]
        if marker == 0xFF:  # Any number of them may stand before a mark.
            at += 1
            continue
        if marker == _EOI:
            return tables.num_scans > 0
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end < at + 4 or end > len(data):
            return False
        if not tables.add(marker, data[at + 4 : end]):
            return False
        if marker == _SOS:
            if (found := _NEXT_MARK.search(data, end)) is None:
                return False
            end = found.start()
        at = end
    return False


@dataclasses.dataclass
class _Tables:
    """What the segments of a JPEG have said up to a place."""

    quantisers: set[int] = dataclasses.field(default_factory=set)
    codes: set[int] = dataclasses.field(default_factory=set)  # 0x00 to 0x03 for DC, 0x10 for AC.
    components: dict[int, int] = dataclasses.field(default_factory=dict)  # Id -> quantiser.
    is_progressive: bool = False
    scanned: set[int] = dataclasses.field(default_factory=set)  # Components; if not progressive.
    num_scans: int = 0

    def add(self, marker: int, body: bytes) -> bool:
        """Takes in a segment; False if no decoder could use it."""
        if marker == _DQT:
            return self._add_quantisers(body)
        if marker == _DHT:
            return self._add_codes(body)
        if marker in _FRAMES:
            return self._add_frame(marker, body)
        return self._add_scan(body) if marker == _SOS else marker in _OTHERS

    def _add_quantisers(self, body: bytes) -> bool:
        at = 0
        while at < len(body):
            precision, index = divmod(body[at], 16)
            if precision > 1 or index > 3:
                return False
            self.quantisers.add(index)
            at += 1 + 64 * (precision + 1)
        return at == len(body)

    def _add_codes(self, body: bytes) -> bool:
        at = 0
        while at < len(body):
            kind, lengths = body[at], body[at + 1 : at + 17]
            if kind & 0xEC or not _is_prefix_code(lengths):
                return False
            values = body[at + 17 : at + 17 + sum(lengths)]
            if kind < 0x10 and max(values, default=0) > 15:  # Bits of a difference.
                return False
            self.codes.add(kind)
            at += 17 + sum(lengths)
        return at == len(body)

    def _add_frame(self, marker: int, body: bytes) -> bool:
        if self.components or len(body) < 6 or body[0] != 8 or body[5] not in (1, 3, 4):
            return False
        rows = [body[at : at + 3] for at in range(6, len(body), 3)]
        self.components = {row[0]: row[-1] for row in rows}
        self.is_progressive = marker == 0xC2
        fits = len(body) == 6 + 3 * body[5] and len(self.components) == body[5]
        return fits and all(row[1] in _SIDES for row in rows)

    def _add_scan(self, body: bytes) -> bool:
        num = body[0] if body else 0
        if not 1 <= num <= len(self.components) or len(body) != 4 + 2 * num:
            return False
        start, end, bits = body[-3:]
        high, low = divmod(bits, 16)
        if self.is_progressive:
            fits = start <= end < 64 and (start > 0 or end == 0) and (start == 0 or num == 1)
            fits = fits and low < 14 and high in (0, low + 1)
        else:
            fits = (start, end, bits) == (0, 63, 0)
        ids = set(body[1 : 1 + 2 * num : 2])
        fits = fits and len(ids) == num and not ids & self.scanned
        self.num_scans += 1
        if not self.is_progressive:
            self.scanned |= ids
        for id_, selected in zip(body[1 : 1 + 2 * num : 2], body[2 : 2 + 2 * num : 2], strict=True):
            wanted = set()
            if start == 0 and high == 0:
                wanted.add(selected >> 4)
            if end > 0:
                wanted.add(0x10 | selected & 15)
            fits = fits and self.components.get(id_) in self.quantisers and wanted <= self.codes
        return fits


def _is_prefix_code(lengths: bytes) -> bool:
    """Whether so many codes of 1 to 16 bits can stand beside each other."""
    room = 1
    for num in lengths:
        room = 2 * room - num
        if room < 0:
            return False
    return len(lengths) == 16


def _is_whole_png(data: bytes) -> bool:
    view, at, num_bytes = memoryview(data), 8, 0  # Of compressed pixels.
    for _ in range(_MAX_PARTS):
        end = at + 12 + int.from_bytes(view[at : at + 4])
        if at + 12 > len(data) or end > len(data):
            return False
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            return False
        kind = data[at + 4 : at + 8]
        if kind == b"IEND":
            # Deflate packs at most 1032 to 1; a pixel has at least a bit.
            num_pixels = int.from_bytes(view[16:20]) * int.from_bytes(view[20:24])
            return num_bytes * 1032 * 8 >= num_pixels * view[24]
        if kind == b"IDAT":
            num_bytes += end - at - 12
        at = end
    return False


def _is_whole_webp(data: bytes) -> bool:
    end = 8 + int.from_bytes(data[4:8], "little")
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or end > len(data):
        return False
    at, has_pixels = 12, False
    for _ in range(_MAX_PARTS):
        if at + 8 > end:
            return has_pixels and at == end
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 18]
        if kind == b"VP8 " and (body[3:6] != b"\x9d\x01\x2a" or _first_part(body) > size - 10):
            return False
        if kind == b"VP8L" and body[:1] != b"\x2f":
            return False
        has_pixels |= kind in (b"VP8 ", b"VP8L", b"ANMF")
        at += 8 + size + size % 2  # Parts begin at even places.
    return False


def _first_part(body: bytes) -> int:
    """Size of the first partition of a lossy frame."""
    return int.from_bytes(body[:3], "little") >> 5

# SPDX-License-Identifier: Apache-2.0
"""What all pages share: the shell with its style and script, escaping, images, drawn places.

A page is one file that asks for nothing from the network (its content policy forbids it). Whatever
comes from data passes through `escape`; nothing from data is ever read as markup or script.
"""

import base64
import dataclasses
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from florence2_jax.records.checks import ImageError, open_image, to_rgb
from florence2_jax.typing import Box, Size
from florence2_jax.viewing.draw import Ring, ink_on
from florence2_jax.viewing.look import STYLE
from florence2_jax.viewing.scripts import COMMON

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body><header><h1>{title}</h1><p class="lead">{lead}</p></header>
{top}
<div id="tip" hidden></div>
"""
_MIME_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
_LOSSLESS = ("PNG", "BMP")


@dataclasses.dataclass(frozen=True)
class ImageBounds:
    """Images of at most `kept_bytes` go into a page as they are, others as a JPEG of at most
    `side_px`. What is drawn on them stays sharp."""

    side_px: int
    kept_bytes: int
    quality: int


LARGE = ImageBounds(1280, 2**20, 88)


def small_images(side_px: int = 640) -> ImageBounds:
    """Bounds for pages of many, by default about as wide as a card shows them."""
    return ImageBounds(side_px, side_px**2 // 6, 82)


def escape(text: object) -> str:
    """Text for element content and quoted attributes; what UTF-8 cannot hold becomes `?`."""
    return html.escape(str(text).encode("utf-8", "replace").decode(), quote=True)


def number(value: float) -> str:
    """At most two decimals, none that say nothing."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


def score_text(value: float) -> str:
    """Three decimals for shares and ratios, one for percentages."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def plural(count: int, noun: str) -> str:
    """`1 region`, `2 regions`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def counted(texts: Iterable[str]) -> list[str]:
    """Markup of each text once, in order, with how often it was said if more than once."""
    return [
        escape(text) + (f' <span class="soft">× {num}</span>' if num > 1 else "")
        for text, num in Counter(texts).items()
    ]


def box_area(box: Box) -> float:
    """In square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def style(color: str, **properties: str) -> str:
    """A style attribute that hands a colour, and the ink to write on it, to the style sheet."""
    rest = "".join(f";{name}:{value}" for name, value in properties.items())
    return f'style="--c:{color};--ink:{ink_on(color)}{rest}"'


def swatch(color: str) -> str:
    """A small square of a colour."""
    return f'<i class="swatch" {style(color)}></i>'


def image_uri(data: bytes, bounds: ImageBounds = LARGE) -> str:
    """A data URI of an encoded image; those beyond the bounds, and rare formats, are encoded anew.

    Raises:
        ImageError: if the bytes cannot be opened or decoded.
    """
    image = open_image(data)
    kind = _MIME_TYPES.get(image.format or "")
    if kind is None or len(data) > bounds.kept_bytes:
        shrunk = _encoded(image, bounds)
        if kind is None or max(image.size) > bounds.side_px or len(shrunk) < len(data):
            kind, data = "image/jpeg", shrunk
    elif image.format in _LOSSLESS and len(data) > 2 * image.width * image.height:
        packed = io.BytesIO()  # Pixels as good as uncompressed: the same ones, compressed.
        to_rgb(image).save(packed, "PNG")
        if packed.tell() < len(data):
            kind, data = "image/png", packed.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, bounds: ImageBounds) -> bytes:
    side = bounds.side_px
    image.draft("RGB", (side, side))  # JPEG: decodes what is needed.
    image = to_rgb(image)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=bounds.quality)
    return buffer.getvalue()


def shape(
    ring: Ring,
    color: str,
    *,
    classes: str,
    link: str,
    tip: str,
    kinds: Sequence[str] = (),
    is_box: bool = False,
) -> str:
    """An SVG outline in pixels of the image.

    Args:
        ring: `x, y, ...`; for a box its four corners clockwise from the top left.
        classes: for the style sheet: `box quad poly crowd grounding asked`.
        link: elements of a card with the same link light up together.
        tip: what is said where the mouse rests, line by line.
        kinds: switches of the page that show the shape; any of them does.
    """
    values = [number(value) for value in ring]
    if is_box:
        x0, y0, x1, y1 = ring[0], ring[1], ring[4], ring[5]
        geometry = (
            f'rect x="{values[0]}" y="{values[1]}" '
            f'width="{number(x1 - x0)}" height="{number(y1 - y0)}"'
        )
    else:
        points = " ".join(",".join(values[k : k + 2]) for k in range(0, len(values) - 1, 2))
        geometry = f'polygon points="{points}"'
    return (
        f'<{geometry} class="{classes}" data-kinds="{" ".join(kinds)}" data-link="{link}" '
        f'data-tip="{escape(tip)}" {style(color)}/>'
    )


def chip(
    labels: Iterable[tuple[str, str]],
    color: str,
    *,
    hull: tuple[float, float, float, float],
    size: Size,
    link: str,
    classes: str = "",
) -> str:
    """A label that sticks to its region, at a legible size however the image is scaled.

    Args:
        labels: `(kind, text)`, the first of a kind that is switched on is shown.
        hull: box of the region, in pixels of an image of this size.
    """
    labels = [(kind, text) for kind, text in labels if text.strip()]
    if not labels:
        return ""
    (x0, y0, x1, _), (width, height) = hull, size
    left, right = 100 * x0 / width, 100 - 100 * x1 / width
    at = {"left": f"{left:.2f}%"} if left <= right else {"right": f"{right:.2f}%"}
    at["top"] = f"{100 * y0 / height:.2f}%"
    at["max-width"] = f"{100 - min(left, right):.2f}%"
    place = "above" if y0 / height > 0.06 else "inside"
    kinds = " ".join(dict.fromkeys(kind for kind, _ in labels))
    words = "".join(f'<b data-kind="{kind}">{escape(text)}</b>' for kind, text in labels)
    return (
        f'<span class="chip {place} {classes}" data-kinds="{kinds}" data-link="{link}" '
        f"{style(color, **at)}>{words}</span>"
    )


def figure(image_tag: str, size: Size, shapes: Iterable[str], chips: Iterable[str] = ()) -> str:
    """An image with its drawn places; shapes come in order from the back to the front."""
    width, height = size
    return (
        f'<div class="figure" style="--ratio:{width / height:.4f}">{image_tag}'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(shapes)}</svg>'
        f"{''.join(chips)}</div>"
    )


def no_image(reason: ImageError) -> str:
    """What stands in the place of an image that cannot be shown."""
    return f'<div class="no-image">The image cannot be shown: {escape(reason)}</div>'


def image_tag(data: bytes, what: str, extra: str = "") -> str:
    """An `img` with the data inside, or a note that says why there is none."""
    try:
        uri = image_uri(data)
    except ImageError as error:
        return no_image(error)
    return f'<img loading="lazy" decoding="async" alt="{escape(what)}" src="{uri}"{extra}>'


def later_card(markup: str, image: str, size: Size) -> str:
    """A card that the script makes when it comes near: both parts are inert text until then.

    Args:
        markup: of the card, with whatever came from data escaped: so it can hold no end tag of
            a script, nor the beginning of a comment.
        image: its data URI, or nothing.
        size: `(width, height)` of the image, from which the height of the card is guessed.
    """
    return (
        f'<article class="card later" style="--ratio:{size[0] / size[1]:.4f}">'
        f'<script type="text/plain">{markup}</script>'
        f'<script type="text/plain">{image}</script></article>\n'
    )


def inert_json(value: object, name: str) -> str:
    """JSON that a script of the page reads by the name given; nothing in it is markup."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def write_page(
    path: Path, *, title: str, lead: str, top: str, body: Iterable[str], script: str
) -> None:
    """Writes a page piece by piece, under another name until it is whole.

    Args:
        path: of the file; missing folders are made.
        title: plain text.
        lead: one sentence that says what one sees, plain text.
        top: markup between the heading and the cards: switches, legend, tables.
        body: markup of the cards.
        script: runs before the cards are there, after the one that all pages share; its function
            `start` is called when all is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(_HEAD.format(title=escape(title), lead=escape(lead), style=STYLE, top=top))
            file.write(f"<script>{COMMON}{script}</script>\n<main>\n")
            file.writelines(body)
            file.write("</main></body></html>\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

# SPDX-License-Identifier: Apache-2.0
"""The axis alphabet of the package, and the error a user can mend.

Annotations, einsums and comments spell axes alike:

    B batch             Y X feature-map rows, columns    N image tokens
    K prompts per image L prompt                         S encoder sequence
    T target            D width                          F MLP width
    H heads             G groups                         C E channels per head or group
    R regions           P points                         V vocabulary
"""

from typing import TypeAlias

Size: TypeAlias = tuple[int, int]
"""`(width, height)` in pixels, the order of PIL and of the released processors."""

Box: TypeAlias = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in pixels of the original image, `x0 <= x1` and `y0 <= y1`."""

Quad: TypeAlias = tuple[float, float, float, float, float, float, float, float]
"""Four corners `x, y`, clockwise from the top left of the text, in pixels."""

Polygon: TypeAlias = tuple[float, ...]
"""`x0, y0, x1, y1, ...` of one closed ring (the first point is not repeated), in pixels."""


class UserError(Exception):
    """Something the person at the keyboard can mend: names the thing, the place and the remedy.

    Commands print it as one line and exit with status 2; the library raises it from code that
    reads what a user wrote or pointed at (configs, folders, records, checkpoints).
    """

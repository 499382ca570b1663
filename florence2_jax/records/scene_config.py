# SPDX-License-Identifier: Apache-2.0
"""The knobs of drawn scenes."""

import dataclasses
import functools

from florence2_jax.records.scene_language import NUMBERS
from florence2_jax.records.scene_shapes import COLORS, FONTS, KINDS, LETTERS
from florence2_jax.typing import Size, UserError

WORDS = (
    *("GO", "NO", "BUS", "ICE", "KEY", "MAP", "TEA", "ZOO", "BOOK", "CAFE", "EXIT", "MILK"),
    *("NEWS", "OPEN", "PARK", "SALE", "SHOP", "STOP", "TAXI", "WIFI", "BREAD", "HOTEL"),
    *("JUICE", "PIZZA"),
)

MAX_OBJECTS = len(NUMBERS) - 1  # As far as the captions can count.
_LEAST_VISIBLE = 0.35  # Less than this of an object is hard to name.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes look; the defaults are easy enough for a tiny model at 96 pixels.

    Lengths ending in `share` are shares of the shorter side of the image, `*_share` of single
    things the probability of one.

    Raises:
        UserError: for values with which no scene, or none within the limits, can be drawn.
    """

    size_px: int | Size = 96  # The side of a square, or (width, height).
    min_objects: int = 1
    max_objects: int = 3
    side_shares: tuple[float, float] = (0.25, 0.5)  # The lower third is "small", the upper "large".
    repeat_share: float = 0.35  # Objects that take the kind of one drawn before.
    texture_share: float = 0.5  # Objects that are not plain.
    may_occlude: bool = True
    min_visible: float = 0.7  # Share of an object's pixels that later ones leave in view.
    max_turn_deg: int = 20
    kinds: tuple[str, ...] = tuple(KINDS)
    colors: tuple[str, ...] = tuple(COLORS)
    word_share: float = 0.5
    max_words: int = 1  # Each is there with `word_share`.
    words: tuple[str, ...] = WORDS
    max_word_length: int = 5  # Longer words are left out; numbers have 2 digits up to this.
    number_share: float = 0.0  # Words that are numbers.
    word_height_shares: tuple[float, float] = (0.15, 0.2)
    max_word_turn_deg: int = 25
    fonts: tuple[str, ...] = tuple(FONTS)

    def __post_init__(self):
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise UserError(f"SceneConfig: {message}")

        low, high = self.side_shares
        require(min(self.size) >= 32, f"size_px={self.size_px}: sides must be 32 or more")
        require(
            1 <= self.min_objects <= self.max_objects <= MAX_OBJECTS,
            f"min_objects={self.min_objects} and max_objects={self.max_objects} must be in order, "
            f"from 1 to {MAX_OBJECTS}",
        )
        require(
            0 < low <= high <= 0.7 and low * min(self.size) >= 8,
            f"side_shares={self.side_shares} must be in order, 0.7 at most, and 8 pixels or more",
        )
        require(
            _LEAST_VISIBLE <= self.min_visible <= 1,
            f"min_visible={self.min_visible} must be from {_LEAST_VISIBLE} to 1",
        )
        for name, known in (("kinds", KINDS), ("colors", COLORS), ("fonts", FONTS)):
            chosen = getattr(self, name)
            unknown = sorted(set(chosen) - set(known))
            require(
                bool(chosen) and not unknown,
                f"{name}={chosen}: choose one or more of {tuple(known)}",
            )
        for word in self.words:
            require(
                bool(word) and set(word) <= set(LETTERS),
                f"word {word!r} may have only the characters {''.join(LETTERS)}",
            )
        require(
            self.max_word_length >= 2 and (bool(self.short_words) or self.number_share >= 1),
            f"max_word_length={self.max_word_length} leaves none of {len(self.words)} words",
        )
        for name in ("repeat_share", "texture_share", "word_share", "number_share"):
            require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} not in [0, 1]")
        for name in ("max_turn_deg", "max_word_turn_deg"):
            require(0 <= getattr(self, name) <= 90, f"{name}={getattr(self, name)} not in [0, 90]")
        require(self.max_words >= 0, f"max_words={self.max_words} is negative")
        low, high = self.word_height_shares
        require(
            0 < low <= high <= 0.5 and low * min(self.size) >= 8,
            f"word_height_shares={self.word_height_shares} must be in order, 0.5 at most, and "
            "8 pixels or more",
        )

    @property
    def size(self) -> Size:
        """`(width, height)` in pixels."""
        return (self.size_px, self.size_px) if isinstance(self.size_px, int) else self.size_px

    @functools.cached_property
    def short_words(self) -> tuple[str, ...]:
        """The words that are not too long."""
        return tuple(word for word in self.words if len(word) <= self.max_word_length)


DEFAULT = SceneConfig()

EASY = SceneConfig(
    size_px=64,
    max_objects=2,
    side_shares=(0.35, 0.6),
    repeat_share=0.2,
    texture_share=0.25,
    kinds=("circle", "square", "star", "tree", "house", "fish"),
    colors=("red", "yellow", "green", "blue", "purple"),
    word_share=0.4,
    words=("GO", "BUS", "ICE", "ZOO", "CAFE", "STOP"),
    word_height_shares=(0.2, 0.26),
    max_word_turn_deg=15,
)
"""What a model of two million parameters learns in ten minutes on two CPU cores."""

LEVELS = {"easy": EASY, "standard": DEFAULT}

# SPDX-License-Identifier: Apache-2.0
"""Drawn scenes: records whose every annotation is exact, without a download.

`draw_scene(index)` gives one record with each kind of annotation that the schema has. It is a pure
function of `(index, config, seed)`, to the byte and on every machine, so that a test, a notebook or
a pod can make the same dataset anew instead of carrying it.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt8
from numpy.typing import NDArray

from florence2_jax.records import scene_language as language
from florence2_jax.records.scene_config import DEFAULT, SceneConfig
from florence2_jax.records.scene_raster import (
    UNIT,
    Dice,
    area,
    blend,
    coverage,
    encode_png,
    fill,
    outlines,
    simplify,
)
from florence2_jax.records.scene_shapes import (
    BACKGROUNDS,
    COLORS,
    DETAIL,
    FINISHES,
    FONTS,
    PALE_DETAIL,
    TEXTURES,
    WORD_COLORS,
    Sprite,
    draw_kind,
    draw_word,
)
from florence2_jax.records.schema import (
    GRANULARITIES,
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    Region,
    Text,
)
from florence2_jax.typing import Box, Polygon, Quad, Size, UserError

VERSION = 1  # Raise it when the bytes of any scene change.
PROVENANCE = Provenance(kind="specialist", name=f"scenes/{VERSION}")

_SCENE_TRIES, _SPOT_TRIES = 200, 24
_SPECK_PX = 12  # A visible part smaller than this is no part that a person would outline.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture and the truth about it, before it is put into words.

    `visible` are the pixels of each of `facts.things` after occlusion, `visible_shares` how much
    of it that is, and `phrases` what refers to it alone; `ink` and `quads` are the pixels and the
    frame of each of `facts.writings`.
    """

    pixels: UInt8[NDArray, "Y X 3"]
    facts: language.Facts
    phrases: tuple[str, ...]
    visible: tuple[Bool[NDArray, "Y X"], ...]
    visible_shares: tuple[float, ...]
    ink: tuple[Bool[NDArray, "Y X"], ...]
    quads: tuple[Quad, ...]


@dataclasses.dataclass(kw_only=True)
class _Placed:
    """An object on the canvas; `visible` shrinks as others are laid over it."""

    kind: str
    color: str
    texture: str
    size: str
    num_px: int
    visible: Bool[NDArray, "Y X"]


def draw_scene(index: int, config: SceneConfig = DEFAULT, seed: int = 0) -> Record:
    """Draws a scene with all its annotations, the same bytes on every machine.

    Args:
        index: of the scene, 0 or more; scenes of different indices are independent.
        config: how scenes look.
        seed: of the whole set of scenes, 0 or more.

    Returns:
        A record `scene-000123` with a stored (not compressed) PNG; three texts; a region per
        visible object (labels category, phrase, brief; polygons of what is visible) and per word
        (label text; quad); groundings of the brief and the detailed text; 2 to 4 questions.

    Raises:
        UserError: if the objects of `config` find no room, or a number is out of range.
    """
    scene, dice = _compose(index, config, seed)
    size, facts = config.size, scene.facts
    texts = language.texts(facts, dice)
    record_id = f"scene-{index:06d}"
    return Record(
        id=record_id,
        image=encode_png(scene.pixels),
        width=size[0],
        height=size[1],
        origin=f"florence2_jax scenes v{VERSION} seed {seed}",
        split_key=record_id,
        texts=tuple(
            Text(text=texts[granularity][0], granularity=granularity, provenance=PROVENANCE)
            for granularity in GRANULARITIES
        ),
        regions=_regions(scene),
        groundings=tuple(
            Grounding(text=text, spans=spans, provenance=PROVENANCE)
            for text, spans in (texts["brief"], texts["detailed"])
        ),
        questions=tuple(
            Question(question=question, answers=(answer,), provenance=PROVENANCE)
            for question, answer in language.questions(facts, dice)
        ),
    )


def compose_scene(index: int, config: SceneConfig = DEFAULT, seed: int = 0) -> Scene:
    """The picture of `draw_scene` with the masks and the facts that its annotations follow from."""
    return _compose(index, config, seed)[0]


def _regions(scene: Scene) -> tuple[Region, ...]:
    facts, regions = scene.facts, []
    for thing, phrase, mask in zip(facts.things, scene.phrases, scene.visible, strict=True):
        labels = (
            Label(text=thing.kind, kind="category"),
            Label(text=phrase, kind="phrase"),
            Label(text=language.describe(thing, facts.size), kind="brief"),
        )
        region = Region(
            box=thing.box, labels=labels, polygons=_polygons(mask), provenance=PROVENANCE
        )
        regions.append(region)
    for writing, quad in zip(facts.writings, scene.quads, strict=True):
        labels = (Label(text=writing.text, kind="text"),)
        region = Region(
            box=writing.box, labels=labels, quad=quad, polygons=(quad,), provenance=PROVENANCE
        )
        regions.append(region)
    return tuple(regions)


def _polygons(mask: Bool[NDArray, "Y X"]) -> tuple[Polygon, ...]:
    """A ring per connected part, clockwise from its top-most, then left-most point."""
    rings = []
    for exact in outlines(mask):
        ring = simplify(exact)
        ring = ring if len(ring) >= 3 else exact.astype(float)  # A sliver one pixel wide.
        rings.append(tuple(ring.reshape(-1).tolist()))
    return tuple(rings)


# --- Composition ----------------------------------------------------------------------------


def _compose(index: int, config: SceneConfig, seed: int) -> tuple[Scene, Dice]:
    """A scene, and the dice as they lie after it."""
    if not (0 <= index < 2**64 and 0 <= seed < 2**64):
        raise UserError(f"scene {index} of seed {seed}: both must be 0 or more, and below 2**64")
    dice = Dice(seed, index)
    for _ in range(_SCENE_TRIES):
        scene = _try_scene(dice, config)
        if scene is not None:
            return scene, dice
    raise UserError(
        f"scene {index} of seed {seed}: {config.min_objects} objects of {config.side_shares} of "
        "the side find no room; lower min_objects, side_shares, min_visible or word_share"
    )


def _try_scene(dice: Dice, config: SceneConfig) -> Scene | None:
    """A scene, None where the objects drawn by chance find no room or cannot be told apart."""
    width, height = config.size
    canvas, background, finish = _draw_background(dice, config.size)
    taken = np.zeros((height, width), bool)
    written = [
        _write(dice, config, canvas, taken)
        for _ in range(config.max_words)
        if dice.chance(config.word_share)
    ]
    written = [item for item in written if item is not None]
    placed: list[_Placed] = []
    for _ in range(dice.between(config.min_objects, config.max_objects)):
        _place_object(dice, config, canvas, taken, placed)
    if len(placed) < config.min_objects:
        return None
    named = [
        language.Thing(
            kind=p.kind, color=p.color, texture=p.texture, size=p.size, box=_hull(p.visible)
        )
        for p in placed
    ]
    order = sorted(range(len(placed)), key=lambda i: named[i].box)  # Left to right.
    facts = language.Facts(
        size=config.size,
        things=tuple(named[i] for i in order),
        writings=tuple(writing for writing, _, _ in written),
        background=background,
        finish=finish,
    )
    phrases = [language.refer(facts, thing, dice) for thing in facts.things]
    if None in phrases:
        return None
    return Scene(
        pixels=canvas.astype(np.uint8),
        facts=facts,
        phrases=tuple(phrase for phrase in phrases if phrase),
        visible=tuple(placed[i].visible for i in order),
        visible_shares=tuple(int(placed[i].visible.sum()) / placed[i].num_px for i in order),
        ink=tuple(ink for _, ink, _ in written),
        quads=tuple(quad for _, _, quad in written),
    )


def _draw_background(dice: Dice, size: Size) -> tuple[Int[NDArray, "Y X 3"], str, str]:
    """A canvas that is never plain: a gradient, and grain or a weave over it."""
    width, height = size
    name, finish = dice.pick(tuple(BACKGROUNDS)), dice.pick(FINISHES)
    x, y = np.arange(width)[None], np.arange(height)[:, None]
    rise_x, rise_y = dice.pick(((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1)))
    swing = 22 if finish == "smooth" else 8
    light = rise_x * swing * (2 * x - width) // width + rise_y * swing * (2 * y - height) // height
    if finish == "grainy":
        light = light + (dice.bytes_field(height, width) - 128) * 18 // 128
    elif finish == "woven":
        cell = max(2, min(size) // 32)
        light = light + ((x // cell + y // cell) % 2 * 2 - 1) * 6
    light = np.broadcast_to(light, (height, width))
    canvas = np.clip(np.array(BACKGROUNDS[name]) + light[:, :, None], 0, 255).astype(np.int64)
    return canvas, name, finish


def _write(
    dice: Dice, config: SceneConfig, canvas: Int[NDArray, "Y X 3"], taken: Bool[NDArray, "Y X"]
) -> tuple[language.Writing, Bool[NDArray, "Y X"], Quad] | None:
    """Writes a word where nothing else is; None where it finds no room."""
    text = dice.pick(config.short_words or ("",))
    if dice.chance(config.number_share):
        num_digits = dice.between(2, config.max_word_length)
        text = "".join(dice.pick("0123456789") for _ in range(num_digits))
    font, color = FONTS[dice.pick(config.fonts)], dice.pick(WORD_COLORS)
    low, high = (round(share * min(config.size)) for share in config.word_height_shares)
    half = config.max_word_turn_deg
    turn = (dice.between(-half, half) + dice.between(-half, half)) // 2  # Level is likeliest.
    sprite = draw_word(text, font, dice.between(low, high), turn)
    for _ in range(_SPOT_TRIES):
        spot = _spot(dice, sprite, config.size)
        if spot is None:  # A long word in a wide font.
            sprite = draw_word(text, font, low, turn)
            continue
        window, (x, y) = spot
        if taken[window].any():
            continue
        blend(canvas[window], [(COLORS[color][0], sprite.body)])
        frame = np.array(sprite.quad).reshape(4, 2)
        rows, columns = sprite.body.shape
        taken[window] |= coverage(fill([np.rint(frame * UNIT).astype(np.int64)], columns, rows)) > 0
        ink = np.zeros_like(taken)
        ink[window] = sprite.mask
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (frame + np.array((x, y))).tolist()
        quad = (x0, y0, x1, y1, x2, y2, x3, y3)
        box = (min(quad[::2]), min(quad[1::2]), max(quad[::2]), max(quad[1::2]))
        return language.Writing(text=text, color=color, box=box), ink, quad
    return None


def _place_object(
    dice: Dice,
    config: SceneConfig,
    canvas: Int[NDArray, "Y X 3"],
    taken: Bool[NDArray, "Y X"],
    placed: list[_Placed],
) -> None:
    """Draws one more object over the others; none where it finds no room."""
    kind, color = dice.pick(config.kinds), dice.pick(config.colors)
    if placed and dice.chance(config.repeat_share):
        kind = dice.pick(placed).kind
        color = dice.pick(placed).color if dice.chance(0.4) else color
    texture = dice.pick(TEXTURES[1:]) if dice.chance(config.texture_share) else TEXTURES[0]
    low, high = (round(share * min(config.size)) for share in config.side_shares)
    size, third = dice.pick(("small", "large")), (high - low) // 3
    side_px = dice.between(*((low, low + third) if size == "small" else (high - third, high)))
    turn = dice.between(-config.max_turn_deg, config.max_turn_deg)
    sprite = draw_kind(kind, texture, side_px, turn, mirrored=dice.chance(0.5))
    mask = sprite.mask
    for _ in range(_SPOT_TRIES):
        spot = _spot(dice, sprite, config.size)
        if spot is None:
            return
        window, _ = spot
        covered = [p for p in placed if (p.visible[window] & mask).any()]
        if (taken[window] & mask).any() or any(p.color == color for p in covered):
            continue  # Words stay whole, and things of one colour apart.
        visible = np.zeros_like(taken)
        visible[window] = mask
        if not all(_stays_whole(p, visible, config) for p in covered):
            continue
        for p in covered:
            p.visible &= ~visible
        tint = COLORS[color]
        detail = PALE_DETAIL if color == "black" else DETAIL
        paints = (tint[0], sprite.body), (tint[1], sprite.tint), (detail, sprite.details)
        blend(canvas[window], paints)
        num_px = int(mask.sum())
        placed.append(
            _Placed(
                kind=kind, color=color, texture=texture, size=size, num_px=num_px, visible=visible
            )
        )
        return


def _stays_whole(below: _Placed, above: Bool[NDArray, "Y X"], config: SceneConfig) -> bool:
    """True if what stays visible of an object is enough, and outlines without holes can tell it."""
    left = below.visible & ~above
    num_left = int(left.sum())
    if not config.may_occlude or num_left < config.min_visible * below.num_px:
        return False
    areas = [area(ring) // 2 for ring in outlines(left)]
    return min(areas) >= _SPECK_PX and sum(areas) <= 1.08 * num_left


def _spot(dice: Dice, sprite: Sprite, size: Size) -> tuple[tuple[slice, slice], Size] | None:
    """A window of the canvas by chance for a sprite, and its corner; None where it is too large."""
    height, width = sprite.body.shape
    if width > size[0] or height > size[1]:
        return None
    x, y = dice.between(0, size[0] - width), dice.between(0, size[1] - height)
    return (slice(y, y + height), slice(x, x + width)), (x, y)


def _hull(mask: Bool[NDArray, "Y X"]) -> Box:
    """The tight box of a mask, on the outer sides of its pixels."""
    ys, xs = np.nonzero(mask)
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)

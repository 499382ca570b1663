# SPDX-License-Identifier: Apache-2.0
"""Several targets of one image in one row of the decoder, with little padding.

A row of `pack_length` cells is cut into chunks of `CHUNK`. Every target takes as many chunks of its
own as it needs, side by side, so only its last one has padding; `target_prompts` says for each
chunk which prompt it answers. Targets are never cut, and no two share a chunk.

Which draws share a row decides what a model learns, so the rule leaves the task weights alone as
far as a row of fixed size can:

1. Draws are taken in their order until they fill the row (or all prompts are used). Nothing looks
   at the length of what was not drawn yet, so K may be generous.
2. Of these the longest are placed first: only the last draw did not fit, and were it left out,
   long targets would be, over and over.
3. What found no room was then short, and is replaced by the next draws that fit: short ones again.

A target finds room if it fits whole, or if it is a mask that fits when drawn with fewer points.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from florence2_jax.text.tokenizer import PAD_ID

CHUNK = 16
"""Cells that always belong to one target. Half of it is lost per target; more of it would waste
cells, less of it memory: the keys and values a chunk attends to are gathered once per chunk."""


@dataclasses.dataclass(frozen=True)
class Written:
    """The ids of a target, `<s> ... </s>`, and how many regions or sentences it lacks."""

    ids: list[int]
    num_dropped: int = 0


Write: TypeAlias = Callable[[int, int], Written | None]
"""Number of a draw, most ids -> its target, or None if it would have to lose something to fit."""


@dataclasses.dataclass(frozen=True)
class Filling:
    """Targets that share a row, by number of the draw and in its order; how many found no room."""

    placed: dict[int, Written]
    num_unplaced: int


def fill_row(num_draws: int, write: Write, *, num_prompts: int, pack_length: int) -> Filling:
    """Chooses which draws share a row, by the rule of this module.

    Args:
        num_draws: how many draws there are, in their order; more than `num_prompts` of them are
            spares for what finds no room.
        write: writes the target of a draw; not asked for draws that are not needed.
        num_prompts: K, the most targets of a row.
        pack_length: cells of the row, a multiple of `CHUNK`.
    """
    free = pack_length // CHUNK
    placed: dict[int, Written] = {}

    def place(draw: int) -> None:
        nonlocal free
        target = write(draw, free * CHUNK)
        if target is not None:
            placed[draw] = target
            free -= num_chunks(len(target.ids))

    first = _first_draws(min(num_draws, num_prompts), write, pack_length)
    for draw in sorted(first, key=lambda draw: -first[draw]):  # Stable: equal ones as drawn.
        if free:
            place(draw)
    num_unplaced = len(first) - len(placed)
    for draw in range(len(first), num_draws):
        if not free or len(placed) == num_prompts:
            break
        place(draw)
    return Filling(dict(sorted(placed.items())), num_unplaced)


def _first_draws(most: int, write: Write, pack_length: int) -> dict[int, int]:
    """Draws until they fill a row -> their lengths in ids."""
    lengths: dict[int, int] = {}
    while len(lengths) < most and sum(map(num_chunks, lengths.values())) * CHUNK < pack_length:
        target = write(len(lengths), pack_length)
        lengths[len(lengths)] = pack_length if target is None else len(target.ids)
    return lengths


def num_chunks(length: int) -> int:
    """Chunks that a target of `length` ids takes."""
    return -(-length // CHUNK)


def lay_out(
    targets: Sequence[Sequence[int]], pack_length: int
) -> tuple[Int[NDArray, " N"], Int[NDArray, " chunks"]]:
    """The row of some targets, number `k` answering prompt `k`.

    Returns:
        `target_ids` int32[N], the targets with padding after each, and `target_prompts`
        int32[N / CHUNK], the prompt of every chunk, -1 where the row is empty.

    Raises:
        ValueError: if the targets do not fit, or `pack_length` is no multiple of `CHUNK`.
    """
    needed = sum(num_chunks(len(ids)) for ids in targets) * CHUNK
    if pack_length % CHUNK or needed > pack_length:
        raise ValueError(f"{len(targets)} targets need {needed} cells of a row of {pack_length}")
    target_ids = np.full(pack_length, PAD_ID, np.int32)
    target_prompts = np.full(pack_length // CHUNK, -1, np.int32)
    start = 0
    for k, ids in enumerate(targets):
        target_ids[start * CHUNK : start * CHUNK + len(ids)] = ids
        target_prompts[start : start + num_chunks(len(ids))] = k
        start += num_chunks(len(ids))
    return target_ids, target_prompts

# SPDX-License-Identifier: Apache-2.0
"""Which images of a training store are in evaluation stores, exactly or nearly.

Exact copies have the same bytes. Near ones are found by the perceptual hash of ImageHash (64 bits
of the lowest frequencies), which recompression, scaling and small changes of colour hardly move. A
crop or mirror image hashes differently, so an image is looked at in many views: mirrored or not,
and cut to 60 to 90 % of its sides at nine places. One image of a pair is always whole. A pair of
hashes within `MAX_DISTANCE` bits is a candidate; then the view is moved and scaled a little until
the grey values of the two, 32 x 32 of them, correlate best, and they are a match if that is by
`MIN_CORRELATION` or more.

Of 20 photos cropped anywhere, all were found at 85 % of the sides and more, 18 at 75 %, 11 at 65 %
and 6 at 55 %, and no other photo. Missed are rotations and collages, too. Images without
contrast (a blank page) are compared by their bytes alone.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt64
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.records.checks import ImageError, open_image
from florence2_jax.records.excluded import MIN_CONTRAST, SIDE, image_hash, thumbnail
from florence2_jax.records.store import RecordStore, splits_of
from florence2_jax.typing import UserError

MAX_DISTANCE = 14
MIN_CORRELATION = 0.9
_WHAT = "looking for near copies"
_KEPT_SIDE = 64  # Of the one that candidates are compared by.
_READ = 256  # Records a process reads at a time.
_SCALES = (0.92, 0.84, 0.76, 0.68, 0.6)
_PLACES = (0.0, 0.5, 1.0)
_CHUNK = 4096  # Training hashes compared at a time.
_MOVES = (0.04, 0.02, 0.01)  # How far a view is moved to fit, in shares of the sides.

View = tuple[float, float, float, float]
"""Part of an image, as shares of its sides: `x0, y0, x1, y1`."""

WHOLE: View = (0.0, 0.0, 1.0, 1.0)
VIEWS: tuple[View, ...] = (
    WHOLE,
    *(
        (x * (1 - s), y * (1 - s), x * (1 - s) + s, y * (1 - s) + s)
        for s, x, y in itertools.product(_SCALES, _PLACES, _PLACES)
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """An image of the training store that is in an evaluation store.

    `how` is "same bytes", or "near" with what was done to one of them: "mirrored", "training is a
    crop", "evaluation is a crop". `correlation` is that of grey values, 1 for the same bytes.
    """

    split: str
    id: str
    evaluation: str
    evaluation_split: str
    evaluation_id: str
    how: str
    correlation: float


@dataclasses.dataclass(frozen=True)
class _Prints:
    """What is compared of one split of a store."""

    directory: Path
    split: str
    ids: list[str]
    digests: list[bytes]
    thumbnails: NDArray[np.uint8]  # [N, Y, X], grey.
    hashes: UInt64[NDArray, "N V"]  # One per view.
    mirrored: UInt64[NDArray, "N V"]


def find_overlap(
    training: Path,
    evaluations: Sequence[Path],
    *,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Match]:
    """Every pair of an image in the training store's split "train" and one of another store.

    Of the training store itself the splits beside "train" are evaluation too. Work grows with the
    product of the two sizes (64-bit comparisons, about 10^9 a second), memory with their sum (5 kB
    an image).

    Raises:
        UserError: if ImageHash is not installed, a store cannot be read, or there is no split
            "train".
    """
    image_hash(_WHAT)
    places = [(training, split) for split in splits_of(training) if split != "train"]
    places += [(path, split) for path in evaluations for split in splits_of(path)]
    if not places:
        raise UserError(f"{training}: has one split only; give evaluation stores beside it")
    stores = [RecordStore(training, "train"), *(RecordStore(*place) for place in places)]
    total = sum(map(len, stores))
    done, prints = 0, []
    for store in stores:
        report = functools.partial(_report, on_progress, done, total)
        prints.append(_prints(store, num_workers, report))
        done += len(store)
    return [match for other in prints[1:] for match in _matches(prints[0], other)]


def write_list(matches: Sequence[Match], path: Path) -> None:
    """Writes a list for a run's `input.exclude`: one match a line, as JSON."""
    lines = (json.dumps(dataclasses.asdict(match), ensure_ascii=False) for match in matches)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _grey(data: bytes) -> NDArray[np.uint8]:
    """Grey values of an image, square whatever its shape. Raises ImageError if it is none."""
    image = open_image(data)
    image.draft("RGB", (4 * SIDE, 4 * SIDE))  # JPEG: at most the pixels that are needed.
    return np.asarray(thumbnail(image))


def _report(on_progress, offset: int, total: int, done: int, _: int) -> None:
    if on_progress:
        on_progress(offset + done, total)


def _prints(store: RecordStore, num_workers: int, on_progress) -> _Prints:
    rows = []
    for done, some in _in_processes(functools.partial(_rows, store), len(store), num_workers):
        rows += some
        on_progress(done, len(store))
    ids, digests, thumbnails, hashes, mirrored = zip(*rows, strict=True)
    return _Prints(
        store.directory,
        store.split,
        list(ids),
        list(digests),
        np.stack(thumbnails),
        np.stack(hashes),
        np.stack(mirrored),
    )


def _in_processes(
    make: Callable[[int, int], list], total: int, num_workers: int
) -> Iterator[tuple[int, list]]:
    """What `make(start, stop)` gives for pieces of `range(total)` in order, with their ends."""
    starts = range(0, total, _READ)
    stops = [min(start + _READ, total) for start in starts]
    if num_workers <= 1:
        yield from zip(stops, map(make, starts, stops), strict=True)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from zip(stops, pool.map(make, starts, stops), strict=True)


def _rows(store: RecordStore, start: int, stop: int) -> list[tuple]:
    rows = []
    for index in range(start, stop):
        record = store[index]
        try:
            grey = _grey(record.image)
        except ImageError:  # `records check` tells; its bytes are still compared.
            grey = np.zeros((SIDE, SIDE), np.uint8)
        digest = hashlib.sha256(record.image).digest()
        kept = np.asarray(Image.fromarray(grey).reduce(SIDE // _KEPT_SIDE))
        rows.append((record.id, digest, kept, _hashes(grey), _hashes(grey[:, ::-1])))
    return rows


def _hashes(grey: NDArray[np.uint8]) -> UInt64[NDArray, "V"]:
    imagehash = image_hash(_WHAT)
    image = Image.fromarray(np.ascontiguousarray(grey))
    bits = [imagehash.phash(_cut(image, view)).hash.reshape(-1) for view in VIEWS]
    return np.packbits(np.stack(bits), axis=1).view(np.uint64)[:, 0]


def _cut(image: Image.Image, view: View) -> Image.Image:
    if view == WHOLE:
        return image
    width, height = image.size
    x0, y0, x1, y1 = view
    return image.crop(
        (round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height))
    )


def _matches(training: _Prints, other: _Prints) -> Iterator[Match]:
    by_digest: dict[bytes, list[int]] = {}
    for j, digest in enumerate(other.digests):
        by_digest.setdefault(digest, []).append(j)
    found: dict[tuple[int, int], tuple[str, float]] = {}
    for i, digest in enumerate(training.digests):
        for j in by_digest.get(digest, ()):
            found[i, j] = "same bytes", 1.0
    for i, j, how, correlation in _near(training, other):
        if (i, j) not in found or found[i, j][1] < correlation:
            found[i, j] = how, correlation
    for (i, j), (how, correlation) in sorted(found.items()):
        yield Match(
            split=training.split,
            id=training.ids[i],
            evaluation=str(other.directory),
            evaluation_split=other.split,
            evaluation_id=other.ids[j],
            how=how,
            correlation=round(correlation, 4),
        )


def _near(training: _Prints, other: _Prints) -> Iterator[tuple[int, int, str, float]]:
    """Pairs whose views look alike: training number, other number, how, correlation."""
    for is_mirrored, theirs in ((False, other.hashes), (True, other.mirrored)):
        for ours_view, theirs_view in _view_pairs():
            ours = training.hashes[:, ours_view]
            for start in range(0, len(ours), _CHUNK):
                near = _distances(ours[start : start + _CHUNK], theirs[:, theirs_view])
                for i, j in np.argwhere(near <= MAX_DISTANCE).tolist():
                    grey = other.thumbnails[j]
                    correlation = _best_correlation(
                        training.thumbnails[start + i],
                        VIEWS[ours_view],
                        grey[:, ::-1] if is_mirrored else grey,
                        VIEWS[theirs_view],
                    )
                    if correlation >= MIN_CORRELATION:
                        yield start + i, j, _how(is_mirrored, ours_view, theirs_view), correlation


def _view_pairs() -> Iterator[tuple[int, int]]:
    yield 0, 0
    for view in range(1, len(VIEWS)):
        yield 0, view
        yield view, 0


def _how(is_mirrored: bool, ours_view: int, theirs_view: int) -> str:
    parts = ["near"]
    if theirs_view:
        parts.append("training is a crop")
    if ours_view:
        parts.append("evaluation is a crop")
    return ", ".join(parts + ["mirrored"] * is_mirrored)


def _distances(a: UInt64[NDArray, "N"], b: UInt64[NDArray, "M"]) -> NDArray[np.uint8]:
    return np.bitwise_count(a[:, None] ^ b[None])


def _best_correlation(a: NDArray, a_view: View, b: NDArray, b_view: View) -> float:
    """Pearson's correlation of grey values where the views fit best; 0 where one is blank."""
    if b_view == WHOLE:
        a, a_view, b, b_view = b, b_view, a, a_view  # The first is whole now.
    fixed, image = _values(a, WHOLE), Image.fromarray(np.ascontiguousarray(b))
    best = _correlation(fixed, _values(image, b_view))
    for move in _MOVES if b_view != WHOLE else ():
        around = [view for view in _moved(b_view, move) if min(view) >= 0 and max(view) <= 1]
        found = [(_correlation(fixed, _values(image, view)), view) for view in around]
        best, b_view = max([(best, b_view), *found])
    return best


def _moved(view: View, move: float) -> Iterator[View]:
    """The view one step aside, larger or smaller by one step, and both."""
    x0, y0, x1, y1 = view
    for dx, dy, grow in itertools.product((-move, 0.0, move), repeat=3):
        yield x0 + dx - grow, y0 + dy - grow, x1 + dx + grow, y1 + dy + grow


def _correlation(a: NDArray, b: NDArray) -> float:
    if min(a.std(), b.std()) < MIN_CONTRAST:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _values(grey: NDArray | Image.Image, view: View) -> Float[NDArray, "P"]:
    image = grey if isinstance(grey, Image.Image) else Image.fromarray(np.ascontiguousarray(grey))
    width, height = image.size
    box = (view[0] * width, view[1] * height, view[2] * width, view[3] * height)
    part = image.resize((32, 32), Image.Resampling.BILINEAR, box=box)
    return np.asarray(part, np.float64).reshape(-1)

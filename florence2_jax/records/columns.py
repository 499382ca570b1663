# SPDX-License-Identifier: Apache-2.0
"""A record as flat columns: what stands in a store.

TFDS can read a feature that is ragged in one dimension without TensorFlow, and none that is ragged
in two. So everything nested is one flat column with a column of counts beside it: the labels of all
regions are `label_text`, and `region_num_labels` says how many belong to each region. Provenances
are a small table that annotations point into, for most annotations of a record share one.

Coordinates and scores are float32 in a store: `as_stored` shows what a record becomes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from florence2_jax.records.schema import (
    GRANULARITIES,
    LABEL_KINDS,
    MAKER_KINDS,
    Grounding,
    Label,
    Provenance,
    Question,
    Record,
    RecordError,
    Region,
    Span,
    Text,
)

_F = tfds.features


def _numbers(width: int) -> Any:
    return _F.Sequence(_F.Tensor(shape=(width,), dtype=np.float32))


_COUNTS = _F.Sequence(_F.Scalar(np.int64))
_FLAGS = _F.Sequence(_F.Scalar(np.bool_))
_TEXTS = _F.Sequence(_F.Text())

FEATURES = _F.FeaturesDict(
    {
        "image": _F.Image(shape=(None, None, 3), doc="encoded as it came: JPEG, PNG or WebP"),
        "image_at": _F.Scalar(np.int64, doc="-1: here; else record of the store that has it"),
        "width": _F.Scalar(np.int64, doc="pixels"),
        "height": _F.Scalar(np.int64, doc="pixels"),
        "id": _F.Text(doc="unique in the store"),
        "origin": _F.Text(doc="where the image came from"),
        "split_key": _F.Text(doc="records that share it are in one split"),
        "source_width": _F.Scalar(np.int64, doc="before it was shrunk on import; 0: it was not"),
        "source_height": _F.Scalar(np.int64, doc="before it was shrunk on import; 0: it was not"),
        # Who made an annotation; the `*_provenance` columns are rows of this table.
        "provenance_kind": _F.Sequence(_F.ClassLabel(names=MAKER_KINDS)),
        "provenance_name": _TEXTS,
        "provenance_round": _COUNTS,
        "provenance_score": _F.Sequence(_F.Scalar(np.float32), doc="NaN: the maker gave none"),
        "provenance_dropped": _F.Sequence(_F.Text(), doc="why a filter dropped it; empty: kept"),
        "text": _TEXTS,
        "text_granularity": _F.Sequence(_F.ClassLabel(names=GRANULARITIES)),
        "text_provenance": _COUNTS,
        "region_box": _numbers(4),
        "region_is_crowd": _FLAGS,
        "region_has_quad": _FLAGS,
        "region_num_labels": _COUNTS,
        "region_num_polygons": _COUNTS,
        "region_provenance": _COUNTS,
        "region_mask_provenance": _F.Sequence(_F.Scalar(np.int64), doc="-1: that of its region"),
        "label_text": _TEXTS,
        "label_kind": _F.Sequence(_F.ClassLabel(names=LABEL_KINDS)),
        "label_provenance": _F.Sequence(_F.Scalar(np.int64), doc="-1: that of its region"),
        "quad": _numbers(8),
        "polygon_num_points": _COUNTS,
        "polygon_points": _numbers(2),
        "grounding_text": _TEXTS,
        "grounding_num_spans": _COUNTS,
        "grounding_provenance": _COUNTS,
        "span_start": _F.Sequence(_F.Scalar(np.int64), doc="character, not byte"),
        "span_end": _F.Sequence(_F.Scalar(np.int64), doc="character, not byte; exclusive"),
        "span_num_boxes": _COUNTS,
        "span_box": _numbers(4),
        "span_phrase_score": _F.Sequence(_F.Scalar(np.float32), doc="NaN: the maker gave none"),
        "span_box_score": _F.Sequence(_F.Scalar(np.float32), doc="NaN: the maker gave none"),
        "span_dropped": _F.Sequence(_F.Text(), doc="why a filter dropped it; empty: kept"),
        "question_text": _TEXTS,
        "question_num_answers": _COUNTS,
        "question_provenance": _COUNTS,
        "answer_text": _TEXTS,
    }
)
"""The columns of a store. Text is UTF-8, boxes are `x0, y0, x1, y1` in pixels of the image."""

_DATA_ENGINE = ("provenance_dropped", "region_mask_provenance", "label_provenance",
                "span_phrase_score", "span_box_score", "span_dropped", "image_at")  # fmt: skip

LATER_COLUMNS = frozenset({"source_width", "source_height", *_DATA_ENGINE})
"""Columns that stores of an earlier layout lack: 1.1.0 has added the first two, 1.2.0 the rest."""

REQUIRED_COLUMNS = FEATURES.keys() - LATER_COLUMNS

_SPECS: Any = FEATURES.get_serialized_info()


def _proto_list(dtype: np.dtype) -> str:
    if np.issubdtype(dtype, np.floating):
        return "float_list"
    return "bytes_list" if dtype == np.object_ else "int64_list"


_Example: Any = tf_example_pb2.Example  # type: ignore[attr-defined]  # Made at run time.
_LISTS = {name: _proto_list(np.dtype(spec.np_dtype)) for name, spec in _SPECS.items()}


def record_to_example(record: Record) -> dict[str, Any]:
    """The columns of a record, as `FEATURES.encode_example` takes them."""
    makers: dict[Provenance, int] = {}

    def row(maker: Provenance | None) -> int:
        return -1 if maker is None else makers.setdefault(maker, len(makers))

    def rows(annotations: Iterable[Any]) -> list[int]:
        return [row(annotation.provenance) for annotation in annotations]

    regions, groundings, questions = record.regions, record.groundings, record.questions
    labels = [label for region in regions for label in region.labels]
    polygons = [polygon for region in regions for polygon in region.polygons]
    spans = [span for grounding in groundings for span in grounding.spans]
    columns: dict[str, Any] = {
        "image": record.image,
        "image_at": -1,
        "width": record.width,
        "height": record.height,
        "id": record.id,
        "origin": record.origin,
        "split_key": record.split_key,
        "source_width": record.source_size[0] if record.source_size else 0,
        "source_height": record.source_size[1] if record.source_size else 0,
        "text": [text.text for text in record.texts],
        "text_granularity": [GRANULARITIES.index(text.granularity) for text in record.texts],
        "text_provenance": rows(record.texts),
        "region_box": _table([region.box for region in regions], 4),
        "region_is_crowd": [region.is_crowd for region in regions],
        "region_has_quad": [region.quad is not None for region in regions],
        "region_num_labels": [len(region.labels) for region in regions],
        "region_num_polygons": [len(region.polygons) for region in regions],
        "region_provenance": rows(regions),
        "region_mask_provenance": [row(region.mask_provenance) for region in regions],
        "label_text": [label.text for label in labels],
        "label_kind": [LABEL_KINDS.index(label.kind) for label in labels],
        "label_provenance": rows(labels),
        "quad": _table([region.quad for region in regions if region.quad is not None], 8),
        "polygon_num_points": [len(polygon) // 2 for polygon in polygons],
        "polygon_points": _table([x for polygon in polygons for x in polygon], 2),
        "grounding_text": [grounding.text for grounding in groundings],
        "grounding_num_spans": [len(grounding.spans) for grounding in groundings],
        "grounding_provenance": rows(groundings),
        "span_start": [span.start for span in spans],
        "span_end": [span.end for span in spans],
        "span_num_boxes": [len(span.boxes) for span in spans],
        "span_box": _table([box for span in spans for box in span.boxes], 4),
        "span_phrase_score": [_or_nan(span.phrase_score) for span in spans],
        "span_box_score": [
            score for span in spans for score in span.box_scores or [math.nan] * len(span.boxes)
        ],
        "span_dropped": [span.dropped for span in spans],
        "question_text": [question.question for question in questions],
        "question_num_answers": [len(question.answers) for question in questions],
        "question_provenance": rows(questions),
        "answer_text": [answer for question in questions for answer in question.answers],
    }
    return columns | {
        "provenance_kind": [MAKER_KINDS.index(maker.kind) for maker in makers],
        "provenance_name": [maker.name for maker in makers],
        "provenance_round": [maker.round for maker in makers],
        "provenance_score": [_or_nan(maker.score) for maker in makers],
        "provenance_dropped": [maker.dropped for maker in makers],
    }


def _or_nan(score: float | None) -> float:
    return math.nan if score is None else score


def _or_none(score: float) -> float | None:
    return None if math.isnan(score) else score


def example_to_record(example: Mapping[str, Any]) -> Record:
    """The record of an example read by TFDS with the image left encoded.

    Raises:
        RecordError: if columns are missing, do not fit together or hold what no record may.
    """
    missing = REQUIRED_COLUMNS - example.keys()
    if missing:
        raise RecordError(f"an example lacks the columns {sorted(missing)}")
    return _build({name: _flat(example.get(name, ()), kind) for name, kind in _LISTS.items()})


def serialize(record: Record, image_at: int = -1) -> bytes:
    """The bytes of a record in a shard: a `tf.train.Example`, the same for equal records.

    Args:
        image_at: index of the record, in another store, that has the image; -1 to write it here.

    Raises:
        RecordError: if rounding to float32 or UTF-8 leaves something no record may hold.
    """
    # What `FEATURES.encode_example` and the serializer of TFDS make of it, in a fifth of the time.
    example = _Example()
    features = example.features.feature
    try:
        columns = record_to_example(record)
        if image_at >= 0:
            columns |= {"image": b"", "image_at": image_at}
        for name, value in columns.items():
            kind = _LISTS[name]
            values = getattr(features[name], kind)
            values.SetInParent()  # An empty column has a type too.
            if kind == "int64_list" and isinstance(value, list):
                values.value.extend(map(int, value))  # A boolean is stored as a number.
            else:
                values.value.extend(_flat(value, kind))
        # The protobuf library alone leaves the order of the columns open.
        data = example.SerializeToString(deterministic=True)
    except UnicodeEncodeError as error:
        raise RecordError(f"record {record.id!r} holds text that is not UTF-8: {error}") from error
    if not _is_float32(record):  # Else what is stored is the record, which is valid.
        parse(data, lambda _: record.image)
    return data


def _is_float32(record: Record) -> bool:
    """Whether rounding changes no coordinate; mending leaves them so."""
    shapes = [shape for r in record.regions for shape in (r.box, r.quad or (), *r.polygons)]
    shapes += [box for g in record.groundings for span in g.spans for box in span.boxes]
    exact = np.array([number for shape in shapes for number in shape], np.float64)
    with np.errstate(over="ignore"):
        return bool((exact.astype(np.float32) == exact).all())


def parse(data: bytes, image_of: Callable[[int], bytes] | None = None) -> Record:
    """The inverse of `serialize`, without the detour through TFDS: the way of the hot path.

    Args:
        image_of: the image of a record of the store that has the images, by its index.

    Raises:
        RecordError: if columns are missing, do not fit together or hold what no record may.
    """
    columns = _Example.FromString(data).features.feature
    if len(columns) < len(_LISTS) and (missing := REQUIRED_COLUMNS - columns.keys()):
        raise RecordError(f"a stored example lacks the columns {sorted(missing)}")
    values = {name: getattr(columns[name], kind).value for name, kind in _LISTS.items()}
    if (image_at := _image_at(values["image_at"])) >= 0:
        if image_of is None:
            raise RecordError(f"the image is that of record {image_at} of another store")
        values["image"] = [image_of(image_at)]
    return _build(values)


def parse_image(data: bytes) -> bytes | int:
    """The image alone of a stored record, or the index of the record that has it elsewhere."""
    columns = _Example.FromString(data).features.feature
    image_at = _image_at(columns["image_at"].int64_list.value)
    return columns["image"].bytes_list.value[0] if image_at < 0 else image_at


def _image_at(values: Sequence[int]) -> int:
    return values[0] if values else -1  # Stores of an earlier layout have the image.


def as_stored(record: Record) -> Record:
    """The record that a store gives back: equal but for float32 coordinates and scores."""
    return parse(serialize(record))


def _table(rows: Sequence[Any], width: int) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, width)


def _flat(value: Any, kind: str) -> list[Any]:
    if kind == "bytes_list":
        values = [value] if isinstance(value, bytes | str) else list(value)
        return [v.encode() if isinstance(v, str) else v for v in values]
    return np.asarray(value).reshape(-1).tolist()


def _cut(values: Sequence[Any], counts: Sequence[int], what: str) -> list[tuple[Any, ...]]:
    """Parts of a flat column, `counts[i]` values to part `i`."""
    if sum(counts) != len(values) or min(counts, default=0) < 0:
        raise RecordError(f"{len(values)} {what} do not divide into counts {list(counts)}")
    parts, start = [], 0
    for count in counts:
        parts.append(tuple(values[start : start + count]))
        start += count
    return parts


def _rows(values: Iterable[float], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*[iter(values)] * width, strict=True))


def _build(c: Mapping[str, Sequence[Any]]) -> Record:
    try:
        makers = [
            Provenance(
                kind=MAKER_KINDS[kind],
                name=name.decode(),
                round=round_,
                score=_or_none(score),
                dropped=dropped.decode(),
            )
            for kind, name, round_, score, dropped in zip(
                c["provenance_kind"],
                c["provenance_name"],
                c["provenance_round"],
                c["provenance_score"],
                _or_default(c["provenance_dropped"], b"", len(c["provenance_kind"])),
                strict=True,
            )
        ]
        (image,), (width,), (height,) = c["image"], c["width"], c["height"]
        source = *c["source_width"], *c["source_height"]
        (id_,), (origin,), (split_key,) = c["id"], c["origin"], c["split_key"]
        return Record(
            id=id_.decode(),
            image=image,
            width=width,
            height=height,
            origin=origin.decode(),
            split_key=split_key.decode(),
            source_size=source if len(source) == 2 and any(source) else None,
            texts=tuple(
                Text(text=text.decode(), granularity=GRANULARITIES[row], provenance=makers[maker])
                for text, row, maker in zip(
                    c["text"], c["text_granularity"], c["text_provenance"], strict=True
                )
            ),
            regions=_regions(c, makers),
            groundings=_groundings(c, makers),
            questions=_questions(c, makers),
        )
    except RecordError:
        raise
    except (ValueError, IndexError) as error:  # Uneven columns, unknown codes, broken UTF-8.
        raise RecordError(f"the columns of an example do not fit together: {error}") from error


def _regions(c: Mapping[str, Sequence[Any]], makers: Sequence[Provenance]) -> tuple[Region, ...]:
    if not c["region_num_labels"]:
        return ()
    label_makers = _or_default(c["label_provenance"], -1, len(c["label_text"]))
    all_labels = [
        Label(text=text.decode(), kind=LABEL_KINDS[kind], provenance=_maker(makers, maker))
        for text, kind, maker in zip(c["label_text"], c["label_kind"], label_makers, strict=True)
    ]
    sizes = [2 * count for count in c["polygon_num_points"]]
    all_polygons = _cut(c["polygon_points"], sizes, "polygon numbers")
    quads = iter(_cut(_rows(c["quad"], 8), list(map(int, c["region_has_quad"])), "quads"))
    return tuple(
        Region(
            box=box,
            labels=labels,
            quad=next(iter(quad), None),
            polygons=polygons,
            is_crowd=bool(is_crowd),
            provenance=makers[maker],
            mask_provenance=_maker(makers, mask_maker),
        )
        for box, labels, quad, polygons, is_crowd, maker, mask_maker in zip(
            _rows(c["region_box"], 4),
            _cut(all_labels, c["region_num_labels"], "labels"),
            quads,
            _cut(all_polygons, c["region_num_polygons"], "polygons"),
            c["region_is_crowd"],
            c["region_provenance"],
            _or_default(c["region_mask_provenance"], -1, len(c["region_provenance"])),
            strict=True,
        )
    )


def _maker(makers: Sequence[Provenance], row: int) -> Provenance | None:
    return None if row == -1 else makers[row]


def _or_default(values: Sequence[Any], default: Any, count: int) -> Sequence[Any]:
    """A column; in stores of an earlier layout, which lack it, its default."""
    return values if len(values) else [default] * count


def _groundings(
    c: Mapping[str, Sequence[Any]], makers: Sequence[Provenance]
) -> tuple[Grounding, ...]:
    if not c["grounding_num_spans"]:
        return ()
    counts, num_spans = c["span_num_boxes"], len(c["span_start"])
    boxes = _cut(_rows(c["span_box"], 4), counts, "boxes of spans")
    box_scores = _or_default(c["span_box_score"], math.nan, len(c["span_box"]) // 4)
    spans = [
        Span(
            start=start,
            end=end,
            boxes=own,
            phrase_score=_or_none(phrase_score),
            box_scores=() if any(map(math.isnan, scores)) else scores,
            dropped=dropped.decode(),
        )
        for start, end, own, phrase_score, scores, dropped in zip(
            c["span_start"],
            c["span_end"],
            boxes,
            _or_default(c["span_phrase_score"], math.nan, num_spans),
            _cut(box_scores, counts, "scores of boxes"),
            _or_default(c["span_dropped"], b"", num_spans),
            strict=True,
        )
    ]
    return tuple(
        Grounding(text=text.decode(), spans=own, provenance=makers[maker])
        for text, own, maker in zip(
            c["grounding_text"],
            _cut(spans, c["grounding_num_spans"], "spans"),
            c["grounding_provenance"],
            strict=True,
        )
    )


def _questions(
    c: Mapping[str, Sequence[Any]], makers: Sequence[Provenance]
) -> tuple[Question, ...]:
    answers = _cut([a.decode() for a in c["answer_text"]], c["question_num_answers"], "answers")
    return tuple(
        Question(question=text.decode(), answers=own, provenance=makers[maker])
        for text, own, maker in zip(
            c["question_text"], answers, c["question_provenance"], strict=True
        )
    )

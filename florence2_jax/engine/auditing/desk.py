# SPDX-License-Identifier: Apache-2.0
"""What the audit page asks for, without HTTP: the next statement, its image, a verdict kept.

Requests and answers are JSON. Whatever a request says is checked here; a `RequestError` says what
is wrong with it.
"""

import dataclasses
import datetime
import math
import os
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from florence2_jax.engine.auditing.frozen import SPLIT, audit_folder, frozen_store
from florence2_jax.engine.auditing.items import Item, Verdict, corrected, items_of
from florence2_jax.engine.auditing.predictions import predictions
from florence2_jax.engine.auditing.queue import Asked, Place, Queue, SamplingConfig, sample
from florence2_jax.engine.auditing.verdicts import VerdictLog
from florence2_jax.records.checks import ImageError
from florence2_jax.records.journal import locked
from florence2_jax.records.schema import Record, RecordError
from florence2_jax.records.store import RecordStore
from florence2_jax.typing import Box
from florence2_jax.viewing.page import LARGE, image_uri

MAX_TEXT, MAX_NAME = 4_000, 80
"""Characters of a corrected text, and of a person's name or a session."""

_MAX_SHOWN = 20_000  # Characters of a statement; a runaway text must not fill the page.


class RequestError(ValueError):
    """A request that no page of ours makes; the message is for its maker."""


class Desk:
    """Everything one server of a workdir knows. Safe for threads."""

    def __init__(self, directory: Path, config: SamplingConfig = SamplingConfig()):
        self._store = RecordStore(frozen_store(directory), SPLIT)
        records = _without_images(self._store)
        self._index = {record.id: index for index, record in enumerate(records)}
        self._sizes = {record.id: record.size for record in records}
        self._log = VerdictLog(directory)
        predicted = {
            f"round {number}": _without_images(RecordStore(path, SPLIT))
            for number, path in predictions(directory).items()
        }
        verdicts = self._log.read()
        self._last = {_place(verdict): verdict for verdict in verdicts}
        self._people = Counter(verdict.who for verdict in verdicts)
        asked = sample(records, predicted, config)
        self.queue = Queue(asked, self._last)
        self._others = {record.id: items_of(record) for record in records}
        self._lock = threading.Lock()

    def next(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The statement that a session is to judge, None where there is no more."""
        asked = self.queue.take(_text(request, "session", MAX_NAME))
        return {"asked": None if asked is None else self._show(asked)} | self._progress()

    def skip(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Puts a statement behind all others, for this session."""
        self.queue.skip(_text(request, "session", MAX_NAME), self._asked(request)[0])
        return {}

    def keep(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Says that a session still looks at a statement."""
        place, asked = self._asked(request)
        held = self.queue.keep(_text(request, "session", MAX_NAME), place)
        return {"held": held, "asked": self._show(asked)}

    def verdict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a verdict; it is on disk when the answer comes."""
        place, asked = self._asked(request)
        session = _text(request, "session", MAX_NAME)
        text, box = request.get("text"), request.get("box")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            verdict = Verdict(
                item=asked.item,
                ruling=request.get("ruling", ""),
                who=_text(request, "who", MAX_NAME).strip(),
                when=now,
                text=None if text is None else _text(request, "text", MAX_TEXT),
                box=None if box is None else self._box(box, asked.item.id),
            )
            # Made into an annotation at once, so that the log holds nothing that cannot be.
            corrected(self._store[self._index[asked.item.id]], [verdict])
        except (ValueError, TypeError, RecordError) as error:
            raise RequestError(str(error)) from error
        with self._lock:
            self._log.add(verdict)
            self._last[place] = verdict
            self._people[verdict.who] += 1
        self.queue.judged(session, place)
        return self._progress()

    def image(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The image of a record as a data URI, or why there is none."""
        id_ = request.get("id")
        if not isinstance(id_, str) or id_ not in self._index:
            raise RequestError("no such image")
        width, height = self._sizes[id_]
        found = {"width": width, "height": height}
        try:
            return found | {"uri": image_uri(self._store.image(self._index[id_]), LARGE)}
        except ImageError as error:
            return found | {"error": str(error)}

    def _asked(self, request: Mapping[str, Any]) -> tuple[Place, Asked]:
        id_, key = request.get("id"), request.get("key")
        if isinstance(id_, str) and isinstance(key, str):
            asked = self.queue.get((id_, key))
            if asked is not None:
                return (id_, key), asked
        raise RequestError("no such statement")

    def _box(self, box: Any, id_: str) -> Box:
        is_box = isinstance(box, list) and len(box) == 4
        if not is_box or any(type(v) not in (int, float) or not math.isfinite(v) for v in box):
            raise RequestError("a box is four numbers")
        width, height = self._sizes[id_]
        x0, x1 = (min(max(float(v), 0.0), width) for v in box[::2])
        y0, y1 = (min(max(float(v), 0.0), height) for v in box[1::2])
        if x0 >= x1 or y0 >= y1:
            raise RequestError("the box is empty")
        return x0, y0, x1, y1

    def _show(self, asked: Asked) -> dict[str, Any]:
        item = asked.item
        last = self._last.get((item.id, item.key))
        width, height = self._sizes[item.id]
        others = [
            {"text": other.text[:100], "boxes": other.boxes}
            for other in self._others[item.id]
            if other.boxes and other.key != item.key
        ]
        return {
            **{"id": item.id, "key": item.key, "kind": item.kind},
            **{"what": item.what[:_MAX_SHOWN], "text": item.text[:_MAX_SHOWN]},
            "is_clipped": max(len(item.what), len(item.text)) > _MAX_SHOWN,
            **{"boxes": item.boxes, "rings": item.rings, "start": item.start},
            **{"maker": _maker(item), "score": item.maker.score},
            **{"reasons": asked.reasons, "is_added": asked.is_added},
            **{"width": width, "height": height, "others": others},
            "verdict": last
            and {
                **{"ruling": last.ruling, "who": last.who, "when": last.when},
                **{"text": last.text, "box": last.box},
            },
        }

    def _progress(self) -> dict[str, Any]:
        with self._lock:
            people = dict(self._people.most_common(8))
        return {
            "num_judged": self.queue.num_judged(),
            "num_asked": len(self.queue),
            "people": people,
        }


def only_server(directory: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Holds a workdir for one server, which alone knows who has which statement.

    Raises:
        UserError: if another process has it.
    """
    busy = f"{directory}: another process serves this audit; open its page, or stop it"
    return locked(audit_folder(directory) / "serving.lock", busy)


def _without_images(store: RecordStore) -> list[Record]:
    """All records; of their images, which are read when they are shown, a stand-in."""
    return [dataclasses.replace(store[index], image=b"-") for index in range(len(store))]


def _place(verdict: Verdict) -> Place:
    return verdict.item.id, verdict.item.key


def _text(request: Mapping[str, Any], name: str, longest: int) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > longest:
        raise RequestError(f"{name} must be a text of 1 to {longest} characters")
    return value


def _maker(item: Item) -> str:
    maker = item.maker
    name = f"{maker.kind} {maker.name}".strip()
    return f"{name}, round {maker.round}" if maker.round else name

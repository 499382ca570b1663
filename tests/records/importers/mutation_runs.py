# SPDX-License-Identifier: Apache-2.0
"""Imports of damaged datasets, in a process of their own, and what must hold of each.

Either the import is refused with one line, or a store is written that opens and whose records are
valid and decode; the books balance; nothing is written outside of the store, nothing run, and no
file read that the dataset does not hold (but through a link that is part of the damage). Whatever
the damage does not touch comes out as it was. Only what may have lost all of its images may be
refused as a whole. Time and memory are bounded.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from import_helpers import jpeg

from florence2_jax.records.importers import detect, plan_import
from florence2_jax.records.inspection import check_store
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore, splits_of, write_store
from florence2_jax.typing import UserError

from .mutating import ALL, NUMBER, Special, Tree, read_tree, touched, write_tree
from .mutations import mutate
from .small_datasets import DATASETS


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one case. One that takes `clock_s` twice hangs; once, the machine may have stood still."""

    num_bytes: int = 2 * 2**30
    cpu_s: float = 20.0
    clock_s: float = 60.0


MAX_MESSAGE = 1000
"""Characters of what a refusal may say."""


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """Of one case. `problem` is empty where all that must hold does.

    `num_unsound` images were kept by their frame, and do not decode (`records/containers.py`).
    """

    dataset: str
    seed: int
    damage: str = ""
    num_touched: int = 0
    kind: str = "failed"  # Or "imported", "refused".
    message: str = ""
    problem: str = ""
    num_unsound: int = 0
    cpu_s: float = 0.0
    peak_bytes: int = 0


Case: TypeAlias = tuple[str, int | Tree]
"""A dataset, and the seed of its damage or the files that take the place of good ones."""


def _outcome(dataset: str, damage: int | Tree, **fields: Any) -> Outcome:
    if isinstance(damage, int):
        return Outcome(dataset=dataset, seed=damage, **fields)
    return Outcome(dataset=dataset, seed=-1, damage=", ".join(damage), **fields)


def import_dataset(format_name: str, source: Path, store: Path) -> dict[str, Any]:
    """What is tried: a source is looked at, listed and written. Returns the report."""
    with contextlib.suppress(UserError):
        detect(source)
    return write_store(store, plan_import(format_name, source))


Importing: TypeAlias = Callable[[str, Path, Path], dict[str, Any]]


def run_cases(
    cases: Sequence[Case],
    importing: Importing = import_dataset,
    *,
    limits: Limits = Limits(),
) -> Iterator[Outcome]:
    """Runs cases one after the other in a child process, in another one after it died."""
    context = multiprocessing.get_context("spawn")
    waiting = collections.deque(cases)
    given_up = None
    with tempfile.TemporaryDirectory() as folder:
        last_words = Path(folder) / "last_words"
        while waiting:
            last_words.write_text("")
            ours, theirs = context.Pipe(duplex=False)
            args = (theirs, list(waiting), importing, limits, last_words)
            child = context.Process(target=_work, args=args)
            child.start()
            theirs.close()
            with contextlib.suppress(EOFError):
                while waiting:
                    yield ours.recv()
                    waiting.popleft()
            child.join()
            words = last_words.read_text(errors="replace")[-3000:]
            if child.exitcode == 1 and not words:
                raise RuntimeError(f"cases cannot be run, first {waiting[0]}; see above")
            if waiting and given_up != waiting[0]:
                given_up = waiting[0]
            elif waiting:
                dataset, damage = waiting.popleft()
                problem = f"the process ended with {child.exitcode}:\n{words}"
                yield _outcome(dataset, damage, problem=problem)


def _work(
    results: Any,
    cases: Sequence[Case],
    importing: Importing,
    limits: Limits,
    last_words: Path,
) -> None:
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_DATA, (4 * limits.num_bytes, 4 * limits.num_bytes))
    watch = _Watch()
    sys.addaudithook(watch)
    with last_words.open("w") as words:
        faulthandler.enable(words)
        runs: dict[str, _Run] = {}
        for dataset, damage in cases:
            faulthandler.dump_traceback_later(limits.clock_s, exit=True, file=words)
            if dataset not in runs:
                place = Path(tempfile.mkdtemp(dir=last_words.parent))
                runs[dataset] = _Run(dataset, place, watch, importing, limits)
            results.send(runs[dataset].case(damage))
        faulthandler.cancel_dump_traceback_later()


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
_NEVER = ("os.symlink", "os.link", "subprocess.Popen", "os.system", "os.exec", "socket.connect")


class _Watch:
    """Sees what the process opens, changes and starts, while it is told to."""

    def __init__(self):
        self.store: Path | None = None
        self.outside = Path()
        self.written: list[str] = []
        self.read: list[str] = []

    def __call__(self, event: str, args: tuple) -> None:
        if self.store is None:
            return
        if event == "open" and isinstance(args[0], str | bytes):
            path = os.fsdecode(args[0])
            if args[2] & _WRITES:
                self._write(event, path)
            elif os.path.realpath(path).startswith((str(self.outside), "/etc/hostname")):
                self.read.append(path)
        elif event in _CHANGES:
            for path in args[:2] if event == "os.rename" else args[:1]:
                self._write(event, os.fsdecode(path))
        elif event in _NEVER:
            self.written.append(f"{event} {args}"[:200])

    def _write(self, event: str, path: str) -> None:
        if not os.path.realpath(path).startswith(str(self.store)):
            self.written.append(f"{event} {path}")


class _Run:
    """Cases of one dataset."""

    def __init__(
        self, dataset: str, place: Path, watch: _Watch, importing: Importing, limits: Limits
    ):
        self.dataset, self.place, self.watch = dataset, place, watch
        self.importing, self.limits = importing, limits
        self.format, build = DATASETS[dataset]
        good = place / "good" / "source"  # By the same name as the others, which some ids hold.
        build(good)
        self.tree = read_tree(good)
        self.secret = jpeg(33, 22)
        write_store(place / "s", plan_import(self.format, good))
        self.good = _by_number(place / "s")
        assert self.good.keys() == ALL, f"{dataset}: {self.good.keys()}"
        self.is_numbered = self.format == "hf"  # Its ids are numbers of rows.

    def case(self, damage: int | Tree) -> Outcome:
        outcome = _outcome(self.dataset, damage)
        if isinstance(damage, int):
            outcome.damage, tree = mutate(random.Random(f"{self.dataset} {damage}"), self.tree)
        else:
            tree = self.tree | damage
        spoiled = touched(self.tree, tree)
        outcome.num_touched = len(spoiled)
        case = self.place / str(outcome.seed)
        (case / "a" / "source").mkdir(parents=True)
        (case / "outside").mkdir()
        (case / "outside" / "secret.jpg").write_bytes(self.secret)
        write_tree(tree, case / "a" / "source")
        before = _listing(case)
        self.watch.written, self.watch.read = [], []
        _reset_peak()
        started = time.process_time()
        report, problem = self._import(case, outcome)
        outcome.cpu_s = time.process_time() - started
        outcome.peak_bytes = _peak_bytes()
        outcome.problem = problem or (
            self._wrong_outside(case, before, tree, outcome)
            or self._wrong_refusal(outcome, spoiled)
            or (self._wrong_store(case / "store", report, spoiled, outcome) if report else "")
        )
        shutil.rmtree(case)
        return outcome

    def _import(self, case: Path, outcome: Outcome) -> tuple[dict[str, Any] | None, str]:
        source, self.watch.outside = case / "a" / "source", case / "outside"
        self.watch.store = case / "store"
        try:
            report = self.importing(self.format, source, case / "store")
            outcome.kind = "imported"
            return report, ""
        except UserError as error:
            outcome.kind = "refused"
            outcome.message = str(error).replace(str(case), "")
            return None, ""
        except Exception:
            return None, traceback.format_exc()[-2500:]
        finally:
            self.watch.store = None

    def _wrong_outside(self, case: Path, before: dict, tree: Tree, outcome: Outcome) -> str:
        if self.watch.written:
            return f"written or run: {self.watch.written[:5]}"
        if (after := _listing(case)) != before:
            return f"files changed: {sorted(after.items() ^ before.items())[:5]}"
        has_links = any(isinstance(c, Special) and c.kind == "link" for c in tree.values())
        if self.watch.read and not has_links:
            return f"read outside of the source: {self.watch.read[:5]}"
        if outcome.cpu_s > self.limits.cpu_s:
            return f"took {outcome.cpu_s:.1f} s of the processor"
        if outcome.peak_bytes > self.limits.num_bytes:
            return f"took {outcome.peak_bytes >> 20} MiB"
        return ""

    def _wrong_refusal(self, outcome: Outcome, spoiled: frozenset[str]) -> str:
        if outcome.kind != "refused":
            return ""
        if "\n" in outcome.message or not 20 < len(outcome.message) < MAX_MESSAGE:
            return f"refused, but not in a line: {outcome.message[:2000]!r}"
        if spoiled < ALL:
            return f"refused, though only {sorted(spoiled)} are touched: {outcome.message}"
        return ""

    def _wrong_store(
        self, store: Path, report: dict, spoiled: frozenset[str], outcome: Outcome
    ) -> str:
        aside: collections.Counter[str] = collections.Counter()
        for entry in map(json.loads, (store / "set_aside.jsonl").read_text("utf-8").splitlines()):
            aside[entry["kind"]] += entry.get("count", 1)
        for kind, tally in report["counts"].items():
            if tally["read"] != tally["kept"] + aside[kind]:
                return f"books of {kind}: {tally}, {aside[kind]} in the quarantine"
        found = check_store(store)
        # Of an image that the damage touches the pixels may be, and are not looked at on import.
        own = [row["what"] for row in found["problems"]]
        outcome.num_unsound = sum(
            text.endswith("the image is truncated or damaged")
            and bool(NUMBER.findall(text))
            and spoiled.issuperset(NUMBER.findall(text))
            for text in own
        )
        if found["num_problems"] > outcome.num_unsound:
            return f"the store is not sound: {found['problems']}"
        if sum(found["splits"].values()) != report["counts"]["image"]["kept"]:
            return f"{found['splits']} records, images {report['counts']['image']}"
        now = _by_number(store)
        for number in sorted(ALL - spoiled):
            if self._comparable(now.get(number)) != self._comparable(self.good[number]):
                return f"{number} is not touched, yet changed: {_short(now.get(number))}"
        if any(record.image == self.secret for rows in now.values() for _, record in rows):
            return "" if self.watch.read else "an image from outside of the source"
        return ""

    def _comparable(self, rows: list[tuple[str, Record]] | None) -> Any:
        if not self.is_numbered:
            return rows
        return [(split, dataclasses.replace(r, id="x", split_key="")) for split, r in rows or []]


def _by_number(store: Path) -> dict[str, list[tuple[str, Record]]]:
    """Records with their splits by the number of their image; "" for those that have none."""
    found: dict[str, list[tuple[str, Record]]] = collections.defaultdict(list)
    for split in splits_of(store):
        for record in RecordStore(store, split):
            number = NUMBER.search(f"{record.id} {record.origin}")
            found[number[0] if number else ""].append((split, record))
    return found


def _short(rows: list[tuple[str, Record]] | None) -> str:
    shown = [(split, dataclasses.replace(r, image=b"...")) for split, r in rows or []]
    return repr(shown)[:1500]


def _listing(case: Path) -> dict[str, tuple]:
    """Everything in a folder but the store, with size, kind and time of its last change."""
    found = {}
    for place, folders, names in os.walk(case):
        if place == str(case):
            folders[:] = [name for name in folders if name != "store"]
        for name in folders + names:
            status = os.lstat(os.path.join(place, name))  # noqa: PTH118
            found[f"{place}/{name}"] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Else the peak is that of all cases until now.
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    try:
        return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale

# SPDX-License-Identifier: Apache-2.0
"""Phase 2 of the data engine: annotations that fail a test are marked, none is removed.

Each filter marks what it drops with a reason, and the next ones look at what is left. The marks of
an earlier run are cleared first, so that a store may be filtered again with other thresholds, and
what a person made is never marked. `Record.kept()` is a record without what is marked.

Source: Florence-2 §4, "Data filtering and enhancement". The paper gives no threshold: all are ours.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.engine.filters.agreement import (
    Agreement,
    AgreementConfig,
    agreement_drops,
    agreements,
)
from florence2_jax.engine.filters.duplicates import (
    DuplicateConfig,
    duplicate_drops,
    shard_of,
    worn_texts,
)
from florence2_jax.engine.filters.marking import cleared, counted, marked
from florence2_jax.engine.filters.merging import merge_boxes
from florence2_jax.engine.filters.ocr import OcrConfig, ocr_drops
from florence2_jax.engine.filters.phrases import PhraseConfig, phrase_drops
from florence2_jax.engine.filters.regions import RegionConfig, nms_drops, region_drops
from florence2_jax.engine.filters.syntax import Parser, Semantics, load_parser
from florence2_jax.engine.filters.tables import filter_report
from florence2_jax.engine.filters.texts import TextConfig, text_drops
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Record
from florence2_jax.records.splitting import open_store
from florence2_jax.records.store import splits_of
from florence2_jax.records.writing import STORE, Plan, write_store
from florence2_jax.training.sections import refuse_unknown, section, texts
from florence2_jax.typing import UserError

FILTERS = ("texts", "duplicates", "regions", "ocr", "phrases", "agreement")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Every threshold of every filter. `filters` names those that run."""

    filters: tuple[str, ...] = FILTERS
    texts: TextConfig = dataclasses.field(default_factory=TextConfig)
    duplicates: DuplicateConfig = dataclasses.field(default_factory=DuplicateConfig)
    regions: RegionConfig = dataclasses.field(default_factory=RegionConfig)
    ocr: OcrConfig = dataclasses.field(default_factory=OcrConfig)
    phrases: PhraseConfig = dataclasses.field(default_factory=PhraseConfig)
    agreement: AgreementConfig = dataclasses.field(default_factory=AgreementConfig)

    @classmethod
    def create(cls, values: Mapping[str, Any]) -> "FilterConfig":
        """The config of a section of a run file; what is not given has its default.

        Raises:
            UserError: on an unknown key, or a value of another type or out of its range.
        """
        values = dict(values)
        sections: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
        refuse_unknown("filter.", values, sections)
        for name, value in values.items():
            if name == "filters":
                values[name] = texts("filter.filters", value)
                refuse_unknown("filter.filters: ", dict.fromkeys(values[name]), FILTERS)
            elif not isinstance(value, sections[name]):
                values[name] = section(sections[name], f"filter.{name}", value)
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """All values, as `create` takes them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclasses.dataclass(frozen=True)
class Findings:
    """What is found out about a record before it is filtered.

    `parsed` has the counts of each text, None where it was not parsed; `worn`, by number of a text,
    how many images of the shard have near the same, where that is too many.
    """

    parsed: Sequence[Semantics | None]
    agreements: Sequence[Agreement]
    worn: Mapping[int, int]


def filter_record(
    record: Record, config: FilterConfig, *, worn: Mapping[int, int] | None = None
) -> Record:
    """The record with what fails marked.

    Args:
        worn: by number of a text, how many images of the shard have near the same, where that is
            too many (`filters.duplicates.worn_texts`).
    """
    return _filter(record, config, worn or {})[0]


def filter_store(
    source: Path,
    directory: Path,
    config: FilterConfig,
    *,
    num_workers: int = 1,
    ray: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes a store of the filtered records, whose images stay in the source.

    Records keep their order, and every record stays. Run again, it goes on where it was.

    Args:
        num_workers, ray, on_progress: as of `write_store`.

    Returns:
        What was kept and dropped (`filters.tables.filter_report`).

    Raises:
        UserError: if the source cannot be read, or the directory holds something else; a parser
            that is not there is no error, the report says what was left out.
    """
    source = source.absolute() if ray else source
    splits = {split: num for split, num in splits_of(source).items() if num}
    if not splits:
        raise UserError(f"{source}: holds no records to filter")
    parser = _parser_of(config)
    job = {
        "format": "filter",
        "store": str(source),
        "sha256": _digest(source),
        "config": config.to_json(),
        "parser": parser.identity,
        "parser_problem": parser.problem,
    }
    plan = Plan(
        units={split: [(split, index) for index in range(num)] for split, num in splits.items()},
        make=functools.partial(
            _filter_one, directory=source, config=config, parser=parser.identity
        ),
        job=job,
        images=source,
    )
    write_store(directory, plan, num_workers=num_workers, ray=ray, on_progress=on_progress)
    return filter_report(directory)


def _filter(
    record: Record, config: FilterConfig, worn: Mapping[int, int]
) -> tuple[Record, Findings]:
    record = cleared(record)
    findings = Findings(
        parsed=_parser_of(config).parse([text.text for text in record.texts]),
        agreements=agreements(record, config.agreement),
        worn=worn,
    )
    for name in FILTERS:
        if name in config.filters:
            record = _STEPS[name](record, config, findings)
    return record, findings


def _filter_regions(record: Record, config: FilterConfig, findings: Findings) -> Record:
    record = marked(record, region_drops(record, config.regions))
    record = merge_boxes(record, config.regions)
    return marked(record, nms_drops(record, config.regions))


_STEPS: dict[str, Callable[[Record, FilterConfig, Findings], Record]] = {
    "texts": lambda r, c, found: marked(r, text_drops(r, c.texts, found.parsed)),
    "duplicates": lambda r, c, found: marked(r, duplicate_drops(r, c.duplicates, found.worn)),
    "regions": _filter_regions,
    "ocr": lambda r, c, found: marked(r, ocr_drops(r, c.ocr)),
    "phrases": lambda r, c, found: marked(r, phrase_drops(r, c.phrases)),
    "agreement": lambda r, c, found: marked(r, agreement_drops(found.agreements, r, c.agreement)),
}


def _filter_one(
    unit: tuple[str, int], ledger: Ledger, *, directory: Path, config: FilterConfig, parser: str
) -> Record:
    if (here := _parser_of(config).identity) != parser:
        raise UserError(
            f"filter: this machine's parser is {here}, where the work was started it is {parser}; "
            "install the same on all of them"
        )
    split, index = unit
    store = open_store(directory, split)
    worn: Mapping[int, int] = {}
    if "duplicates" in config.filters:
        shard = shard_of(store.shard_lengths, index)
        worn = worn_texts(directory, split, shard, config.duplicates).get(index, {})
    ledger.read("image")
    record, findings = _filter(store[index], config, worn)
    ledger.keep("image")
    _note(record, findings, ledger)
    return record


def _note(record: Record, findings: Findings, ledger: Ledger) -> None:
    """Writes into the books what `filters.tables` reads out of them."""
    for kind, maker, reason, number in counted(record):
        ledger.note(f"filtered {kind}", json.dumps([maker, reason]), number)
    for one in findings.agreements:
        for other in (one.maker, *one.others):
            ledger.note(f"agreement {one.kind}", json.dumps([one.maker, other]))
    for text, parsed in zip(record.texts, findings.parsed, strict=True):
        if parsed is None:
            ledger.note("texts not parsed", "text")
            continue
        counts = Counter(texts=1, **dataclasses.asdict(parsed))
        for what, number in counts.items():
            ledger.note(f"semantics {text.granularity}", what, number)


def _parser_of(config: FilterConfig) -> Parser:
    return load_parser(config.texts.parser if "texts" in config.filters else "")


def _digest(directory: Path) -> str:
    """Of what tells the job that wrote a store, so that another source is another job."""
    path = directory / STORE
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()

# SPDX-License-Identifier: Apache-2.0
"""Damaged datasets of every format: nothing but what the damage hits is lost.

A share of what `benchmarks/mutations.py` runs ten thousand of.
"""

import dataclasses
import importlib.util
import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from import_helpers import jpeg

from florence2_jax.records.importers import IMPORTERS, plan_import
from florence2_jax.records.store import write_store
from florence2_jax.typing import UserError

from .mutating import ALL, Content, Packed, Special, packed, read_tree, touched
from .mutation_runs import Case, Limits, import_dataset, run_cases
from .small_datasets import DATASETS

CASES_PER_DATASET = 10
HAS_ARROW = importlib.util.find_spec("pyarrow") is not None


JPEG, LONG = jpeg(), Special("sparse", size=2**40)
PIPE, GONE = Special("pipe"), Special("link", "gone")


def tar(size: bytes) -> Packed:
    """A shard whose first member says that it has another size."""
    first = {"name": "7101.jpg", "type": "0", "link": "", "data": JPEG, "size": size}
    content = packed("00000.tar", [first, first | {"name": "7102.jpg", "size": None}])
    assert isinstance(content, Packed)
    return content


FOUND: list[tuple[str, str, Content]] = [  # What such cases once brought to light.
    ("coco_panoptic", "annotations/panoptic_train2017/7101.png", PIPE),  # Was waited for.
    ("flickr30k", "Sentences/7101.txt", PIPE),
    ("visual_genome", "question_answers.json", PIPE),
    ("vqa_v2", "v2_OpenEnded_mscoco_train2014_questions.json", PIPE),
    ("images", "7102.jpg", Special("link", "7102.jpg")),  # Hid the rest of its folder.
    ("voc", "Annotations/7104.xml", GONE),  # Stopped the import.
    ("voc", "ImageSets/Main/train.txt", b"\xff\xfe\n7101\n7102\n7103\n"),  # Could not be written.
    ("voc", "ImageSets/Main/train.txt", LONG),  # Filled the memory.
    ("openimages", "class-descriptions-boxable.csv", LONG),  # Was read for hours.
    ("webdataset", "00000.tar", LONG),
    ("webdataset", "00000.tar", tar(b"00000000000\0").data + bytes(511)),
    ("webdataset", "00000.tar", tar(b"77777777777\0")),  # Cost the members behind it.
]


def test_damage_that_once_did_harm():
    cases: list[Case] = [(dataset, {name: content}) for dataset, name, content in FOUND]
    outcomes = list(run_cases(cases))
    assert not [outcome for outcome in outcomes if outcome.problem]
    assert sum(outcome.kind == "imported" for outcome in outcomes) == len(FOUND) - 4


def test_damage_costs_what_it_hits_and_nothing_else():
    assert {format_name for format_name, _ in DATASETS.values()} == IMPORTERS.keys()
    names = [name for name in DATASETS if HAS_ARROW or not name.startswith("hf")]
    cases = [(name, seed) for name in names for seed in range(CASES_PER_DATASET)]
    outcomes = list(run_cases(cases))
    wrong = [f"{o.dataset} {o.seed} ({o.damage}): {o.problem}" for o in outcomes if o.problem]
    assert not wrong, "\n\n".join(wrong)
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert kinds["imported"] > len(cases) / 2 and kinds["refused"] > 0
    assert sum(outcome.num_touched < len(ALL) for outcome in outcomes) > len(cases) / 2


class Nonsense(Exception):
    """What no importer raises."""


def faulty(format_name: str, source: Path, store: Path) -> dict:
    """An import with a fault that the number of the case chooses."""
    fault = list(FAULTS)[int(source.parent.parent.name)]
    if fault == "hangs":
        time.sleep(600)
    if fault == "dies":
        os._exit(3)
    if fault == "raises":
        raise Nonsense
    if fault == "refuses":
        raise UserError(f"{source}: something is wrong with it; mend it")
    if fault == "talks":
        raise UserError("several\nlines are no message")
    if fault == "writes":
        (source.parent / "loot").write_text("x")
    if fault == "reads":
        (source.parents[1] / "outside" / "secret.jpg").read_bytes()
    if fault == "loses":
        plan = plan_import(format_name, source)
        units = {split: units[:1] for split, units in plan.units.items()}
        return write_store(store, dataclasses.replace(plan, units=units))
    if fault == "takes memory":
        assert bytearray(b"x") * 2**29
    return import_dataset(format_name, source, store)


FAULTS = {
    "nothing": "",
    "raises": "Nonsense",
    "refuses": "are touched: /a/source: something is wrong",
    "talks": "not in a line",
    "writes": "written or run: ['open /",
    "reads": "read outside of the source",
    "loses": "is not touched, yet changed",
    "takes memory": " MiB",
    "hangs": "in faulty",
    "dies": "the process ended with 3",
}


def test_every_fault_is_found():
    cases = [("icdar", seed) for seed in range(len(FAULTS))]
    outcomes = list(run_cases(cases, faulty, limits=Limits(num_bytes=2**29, clock_s=5)))
    for (fault, told), outcome in zip(FAULTS.items(), outcomes, strict=True):
        assert told in outcome.problem if told else not outcome.problem, (fault, outcome)


@pytest.fixture
def coco(tmp_path) -> dict:
    DATASETS["coco"][1](tmp_path / "coco")
    return read_tree(tmp_path / "coco")


INSTANCES, CAPTIONS = (f"annotations/{kind}_train2017.json" for kind in ("instances", "captions"))


def with_value(tree: dict, name: str, change) -> dict:
    content = tree[name]
    value = json.loads(content.data)
    change(value)
    return tree | {name: packed(name, value)}


def test_what_is_touched_is_told_by_the_difference(coco):
    assert touched(coco, dict(coco)) == set()
    assert touched(coco, coco | {"train2017/7102.jpg": b""}) == {"7102"}
    assert touched(coco, coco | {INSTANCES: Special("pipe")}) == ALL
    assert touched(coco, coco | {INSTANCES: coco[INSTANCES].data[:-1]}) == ALL
    assert touched(coco, coco | {INSTANCES: coco[INSTANCES].data + b" "}) == set()
    assert touched(coco, {k: v for k, v in coco.items() if k != "train2017/7103.jpg"}) == {"7103"}

    def found(change, name=INSTANCES) -> frozenset[str]:
        return touched(coco, with_value(coco, name, change))

    assert found(lambda v: v["annotations"][2].update(bbox=[float("nan")])) == {"7102"}
    assert found(lambda v: v["annotations"][2].update(image_id=7104)) == {"7102", "7104"}
    assert found(lambda v: v["annotations"].pop(0)) == {"7101"}
    assert found(lambda v: v["annotations"].insert(0, dict(v["annotations"][-1]))) == {"7104"}
    assert found(lambda v: v["images"][1].pop("file_name")) == {"7102"}
    assert found(lambda v: v["categories"][0].update(name="dog")) == ALL
    assert found(lambda v: v.pop("annotations"), CAPTIONS) == ALL

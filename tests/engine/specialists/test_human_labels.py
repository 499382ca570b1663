# SPDX-License-Identifier: Apache-2.0
"""Labels of people out of another store; and how every specialist is made from its settings."""

import dataclasses
import pickle

import pytest

from florence2_jax.engine.specialists import TYPES, create
from florence2_jax.engine.specialists.asking import ask
from florence2_jax.engine.specialists.base import Annotations, Failure, SpecialistError
from florence2_jax.records.schema import Label, Provenance, Region, Text
from florence2_jax.records.store import Plan, write_store
from florence2_jax.typing import UserError

MADE = Provenance(kind="specialist", name="other@1")
PERSON = Provenance(name="ann")
POLYGON = (5.0, 6.0, 30.0, 6.0, 30.0, 20.0)


@pytest.fixture(scope="module")
def labelled(make_record, tmp_path_factory):
    """A store in which people and others labelled: "a" and "b" to train, "c" to validate."""
    regions = (
        Region(
            box=(5.0, 6.0, 30.0, 20.0),
            labels=(Label(text="car"), Label(text="a red car", kind="brief", provenance=MADE)),
            polygons=(POLYGON,),
            provenance=PERSON,
            mask_provenance=MADE,
        ),
        Region(box=(0.0, 0.0, 9.0, 9.0), labels=(Label(text="STOP", kind="text"),)),
        Region(box=(1.0, 1.0, 9.0, 9.0), labels=(Label(text="dog"),), provenance=MADE),
        Region(
            box=(2.0, 2.0, 9.0, 9.0), provenance=dataclasses.replace(PERSON, dropped="a mistake")
        ),
    )
    texts = (Text(text="A car.", provenance=PERSON), Text(text="A vehicle.", provenance=MADE))
    records = {i: make_record(i, seed=ord(i), regions=regions, texts=texts) for i in "abc"}
    units = {"train": [records["a"], records["b"]], "val": [records["c"]]}
    folder = tmp_path_factory.mktemp("labelled") / "store"
    write_store(folder, Plan(units=units, make=lambda record, ledger: record, job={}))
    return folder


def loaded(**settings):
    specialist = pickle.loads(pickle.dumps(create("human", **settings)))
    specialist.load()
    return specialist


def test_what_people_said_is_found_and_what_others_said_is_left_out(labelled, make_record):
    for key, id_ in (("id", "c"), ("hash", "renamed"), ("name", "folder/c.jpg")):
        asked = make_record(id_, seed=ord("c"), regions=(), texts=())
        (found,) = ask(loaded(store=str(labelled), key=key), [asked])
        assert isinstance(found, Annotations), found
        assert found.texts == (Text(text="A car.", provenance=PERSON),)
        car, stop = found.regions
        assert car.labels == (Label(text="car"),) and not car.polygons
        assert stop.label("text") == "STOP" and stop.provenance.kind == "human"


def test_only_the_kinds_and_splits_that_are_wanted_are_taken(labelled, make_record):
    for kinds, labels in ((["boxes"], ["car"]), (["text_regions"], ["STOP"]), (["texts"], [])):
        (found,) = ask(loaded(store=str(labelled), kinds=kinds), [make_record("a")])
        assert isinstance(found, Annotations), found
        assert [region.labels[0].text for region in found.regions] == labels
        assert bool(found.texts) == (kinds == ["texts"])
    train = loaded(store=str(labelled), splits=["train"])
    assert ask(train, [make_record("c")]) == [Annotations()]


def test_an_image_nobody_labelled_gets_nothing_and_one_of_another_size_fails(labelled, make_record):
    reader = loaded(store=str(labelled))
    unknown, resized = ask(reader, [make_record("z"), make_record("a", (61, 40))])
    assert unknown == Annotations()
    assert isinstance(resized, Failure) and resized.reason == "garbage answer"
    assert "60 x 40, not 61 x 40" in resized.detail


def test_a_store_or_split_that_is_missing_stops_before_work_starts(labelled, tmp_path):
    for settings, why in (
        (dict(store=str(tmp_path / "none")), "none"),
        (dict(store=str(labelled), splits=["tset"]), "no split 'tset'"),
    ):
        with pytest.raises(SpecialistError, match=why):
            loaded(**settings)


def test_unknown_types_and_settings_name_the_nearest():
    with pytest.raises(UserError, match="did you mean tesseract"):
        create("teseract")
    with pytest.raises(UserError, match="threshold"):
        create("detection", model="a/b", treshold=0.5)
    with pytest.raises(UserError, match=r"detection.model: the run file must say it"):
        create("detection")
    with pytest.raises(UserError, match="is not of type float"):
        create("detection", model="a/b", threshold="high")
    with pytest.raises(UserError, match=r"not in \[0, 1\]"):
        create("detection", model="a/b", threshold=2)
    with pytest.raises(UserError, match="not of type float or None"):
        create("detection", model="a/b", timeout_s="1")
    with pytest.raises(UserError, match="batch_size"):
        create("detection", model="a/b", batch_size=0)


def test_every_type_is_made_from_its_settings_alone_and_says_what_it_makes(tmp_path):
    pytest.importorskip("transformers")
    settings = {
        "checkpoint": dict(model="a/b", tasks=["od", "caption"]),
        "human": dict(store=str(tmp_path)),
        "region_captions": dict(model="a/b", similarity_model="c/d"),
        "chat": dict(url="http://localhost:1/", model="m"),
        "http": dict(url="http://localhost:1/", kinds=["text_regions"]),
        "imperfect": dict(truth=str(tmp_path)),
    }
    for type in TYPES:
        try:
            made = create(type, **settings.get(type, {"model": "a/b"} if needs_model(type) else {}))
        except SpecialistError:
            # Without the program or library, whose version is theirs.
            assert type in ("tesseract", "opencv_people", "opencv_faces")
            continue
        assert made.name and made.version and made.kinds
        assert made.resources.num_cpus == 1 and made.timeout_s is None
        again = pickle.loads(pickle.dumps(made))
        assert (again.name, again.version, again.kinds) == (made.name, made.version, made.kinds)


def needs_model(type: str) -> bool:
    return type in ("detection", "grounding", "captioning", "masks")

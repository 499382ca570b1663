# SPDX-License-Identifier: Apache-2.0
"""Names, synonyms and parents of labels, and labels that do not stay."""

import json

import pytest

from florence2_jax.engine import audit
from florence2_jax.engine.auditing.ontology import Name
from florence2_jax.typing import UserError
from tests.engine.audit_workdir import record, region

LABELS = """
version: 2
names:
  - name: vehicle
  - {name: car, synonyms: [automobile, Motor  Car], parent: vehicle}
  - {name: sports car, parent: automobile}
"""


@pytest.fixture
def labels(tmp_path) -> audit.Ontology:
    path = tmp_path / "labels.yaml"
    path.write_text(LABELS)
    return audit.read_ontology(path)


def test_synonyms_are_named_alike(labels):
    assert labels.normalise(" MOTOR car ") == labels.normalise("Automobile") == "car"
    assert labels.normalise("a  wug ") == "a wug" and not labels.knows("wug")
    assert labels.parents("sports car") == ("car", "vehicle")
    assert labels.parents("wug") == ()


def test_unknown_labels_are_listed_with_the_nearest_names(labels):
    rows = labels.unknown(["cars", "cars", "Car", "wug", "automobiles"])
    assert [(row["label"], row["number"]) for row in rows] == [
        ("cars", 2), ("wug", 1), ("automobiles", 1)
    ]  # fmt: skip
    assert rows[0]["nearest"][0] == "car" and rows[2]["nearest"] == ["car"]
    assert rows[1]["nearest"] == []


def test_json_is_read_as_well(labels, tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels.to_json()))
    assert audit.read_ontology(path) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1", "needs version, names"),
        ("version: one\nnames: []", "version 'one'"),
        ("version: 1\nnames: [{nam: car}]", "name, synonyms and parent"),
        ("version: 1\nnames: [{name: no}]", "must be texts"),  # YAML's word for false.
        ("version: 1\nnames: [{name: car, synonyms: auto}]", "no list"),
        ("version: 1\nnames: [{name: a}, {name: b, synonyms: [A]}]", "of 'a' and of 'b'"),
        ("version: 1\nnames: [{name: a, parent: b}]", "parent 'b' of 'a'"),
        ("version: 1\nnames: [{name: a, parent: b}, {name: b, parent: a}]", "circle"),
        ("version: [", "YAML or JSON"),
        ("!!python/object/apply:os.system ['true']", "YAML or JSON"),
    ],
)
def test_what_is_no_ontology_is_refused(text, message, tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        audit.read_ontology(path)


def test_a_version_does_not_change_its_meaning(labels, tmp_path):
    audit.adopt(tmp_path, labels)
    audit.adopt(tmp_path, labels)
    assert audit.current(tmp_path) == labels
    other = audit.Ontology(version=2, names=(Name(name="car"),))
    with pytest.raises(UserError, match="raise the version"):
        audit.adopt(tmp_path, other)
    newer = audit.Ontology(version=3, names=(Name(name="car"),))
    audit.adopt(tmp_path, newer)
    assert audit.current(tmp_path) == newer
    assert audit.current(tmp_path / "new").names == ()


def test_labels_that_flap_are_listed(labels):
    def named(*names: str) -> list:
        boxes = ((0, 0, 20, 20), (30, 30, 60, 60))
        regions = (region(name, box) for name, box in zip(names, boxes, strict=True))
        return [record(1, regions=tuple(regions))]

    rounds = [named("car", "cup"), named("Automobile", "cup"), named("car", "mug")]
    flapping, renamed = audit.unstable_labels(rounds, labels)
    assert flapping.names == ("automobile", "car") and flapping.are_synonyms
    assert (flapping.num_changes, flapping.num_returns) == (2, 1)
    assert renamed.names == ("cup", "mug") and not renamed.are_synonyms
    assert (renamed.num_changes, renamed.num_returns) == (1, 0)
    assert flapping.ids == ("photo 1",)


def test_regions_are_followed_by_their_place_not_their_order():
    a, b = region("car", (0, 0, 20, 20)), region("cup", (30, 30, 60, 60))
    moved = region("cup", (0, 30, 20, 60))
    rounds = [[record(1, regions=r)] for r in ((a, b), (b, a), (moved, a), (a,))]
    assert audit.unstable_labels(rounds) == []

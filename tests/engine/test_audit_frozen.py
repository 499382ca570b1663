# SPDX-License-Identifier: Apache-2.0
"""What is frozen stays frozen, and training does not see it, under whatever name."""

import dataclasses
import io
import json

import pytest
from PIL import Image

from florence2_jax.cli.main import main
from florence2_jax.engine import audit
from florence2_jax.records.overlap import write_list
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore, splits_of
from florence2_jax.training.config import RunConfig
from florence2_jax.training.job import read_exclusions
from florence2_jax.typing import UserError
from tests.engine.audit_workdir import photo, record
from tests.records.test_combining import store


def copy_of(original: Record, id_: str) -> Record:
    """The same photo, compressed anew: other bytes, another name."""
    return dataclasses.replace(original, id=id_, image=photo(int(original.id.split()[1]), 60))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [record(k) for k in range(20)]


@pytest.fixture(scope="module")
def frozen(records, tmp_path_factory):
    """(workdir, ids of the frozen records, id of a copy of one that was in the source as well)."""
    folder = tmp_path_factory.mktemp("frozen")
    first = audit.freeze(
        store(folder / "plain", train=records), folder / "first", count=4, near_copies=False
    )
    ids = sorted(audit.frozen_ids(folder / "first"))
    assert first["num_frozen"] == len(ids) == 4
    # The source again, with a copy of a frozen photo that is not chosen itself.
    original = next(one for one in records if one.id == ids[0])
    for number in range(100):
        twin = copy_of(original, f"copy {number}")
        source = store(folder / f"source{number}", train=[*records, twin])
        books = audit.freeze(source, folder / f"engine{number}", count=4)
        if books["num_copies"]:
            return folder / f"engine{number}", ids, twin.id
    raise AssertionError("the copy was frozen every time")


def test_the_choice_depends_on_keys_and_seed_alone(records, tmp_path):
    def chosen(name: str, some: list[Record], **options) -> frozenset[str]:
        source = store(tmp_path / f"{name}-source", train=some)
        audit.freeze(source, tmp_path / name, fraction=0.4, near_copies=False, **options)
        return audit.frozen_ids(tmp_path / name)

    all_, backwards = chosen("a", records), chosen("b", records[::-1])
    assert all_ == backwards
    assert chosen("c", records[:15]) == {id_ for id_ in all_ if int(id_.split()[1]) < 15}
    assert chosen("d", records, seed=1) != all_
    bare = [dataclasses.replace(one, regions=(), texts=()) for one in records]
    assert chosen("e", bare) == all_


def test_records_of_one_split_key_are_frozen_together(records, tmp_path):
    pairs = [dataclasses.replace(one, split_key=f"scene {k // 2}") for k, one in enumerate(records)]
    audit.freeze(
        store(tmp_path / "source", train=pairs), tmp_path / "w", count=5, near_copies=False
    )
    numbers = sorted(int(id_.split()[1]) for id_ in audit.frozen_ids(tmp_path / "w"))
    assert len(numbers) == 6 and numbers[::2] == [number - 1 for number in numbers[1::2]]


def test_near_copies_are_neither_frozen_nor_trained_on(frozen):
    workdir, ids, twin = frozen
    assert audit.frozen_ids(workdir) == {*ids, twin}
    held = RecordStore(audit.frozen_store(workdir), "audit")
    assert sorted(one.id for one in held) == ids
    training = RecordStore(audit.training_store(workdir), "train")
    assert not {one.id for one in training} & {*ids, twin}
    assert len(training) == 16
    rows = [json.loads(line) for line in audit.exclude_list(workdir).read_text().splitlines()]
    hashes = {row["id"]: row["phash"] for row in rows}
    assert hashes[twin] and len(hashes[ids[0]]) == 16  # 64 bits, as hexadecimal digits.


def test_the_frozen_store_keeps_images_and_annotations(frozen, records):
    by_id = {one.id: one for one in records}
    held = RecordStore(audit.frozen_store(frozen[0]), "audit")
    assert all(one == by_id[one.id] for one in held)
    training = RecordStore(audit.training_store(frozen[0]), "train")
    assert all(one == by_id[one.id] for one in training)
    assert splits_of(audit.frozen_store(frozen[0])) == {"audit": 4}


def test_a_run_refuses_what_is_frozen(frozen, records, small_run):
    workdir, ids, twin = frozen
    small_run["input"] |= {"exclude": str(audit.exclude_list(workdir))}
    excluded = read_exclusions(RunConfig.create(small_run))
    assert excluded.why(ids[1]) and not excluded.why("unknown", Image.open(io.BytesIO(photo(999))))
    renamed = copy_of(next(one for one in records if one.id == ids[1]), "never seen")
    assert f"looks like {ids[1]}" in excluded.why(renamed.id, Image.open(io.BytesIO(renamed.image)))
    assert excluded.ids == {*ids, twin}
    small_run["input"] |= {"on_excluded": "refuse"}
    with pytest.raises(UserError, match=r"input\.exclude.*5 training records"):
        read_exclusions(RunConfig.create(small_run))


def test_a_frozen_image_is_found_under_another_name(frozen, records, small_run, tmp_path):
    workdir, ids, _ = frozen
    by_id = {one.id: one for one in records}
    renamed = copy_of(by_id[ids[1]], "never seen")
    other_image = dataclasses.replace(by_id[ids[2]], image=photo(999))
    rest = [one for one in records if one.id not in ids][:5]
    mine = store(tmp_path / "mine", train=[renamed, other_image, *rest])
    matches = audit.overlap_with_frozen(workdir, mine)
    assert {match.id: match.how for match in matches} == {"never seen": "near", ids[2]: "same id"}
    write_list(matches, tmp_path / "list.jsonl")
    small_run["input"] |= {
        "records": str(mine), "exclude": str(tmp_path / "list.jsonl"), "on_excluded": "refuse"
    }  # fmt: skip
    with pytest.raises(UserError, match="2 training records"):
        read_exclusions(RunConfig.create(small_run))
    clean = store(tmp_path / "clean", train=rest)
    assert not audit.overlap_with_frozen(workdir, clean)


def test_freezing_again_changes_nothing(records, tmp_path):
    source = store(tmp_path / "source", train=records)
    first = audit.freeze(source, tmp_path / "w", count=4, near_copies=False)
    (tmp_path / "w" / "round-0").mkdir()
    again = audit.freeze(source, tmp_path / "w", count=4, near_copies=False)
    assert again == first
    with pytest.raises(UserError, match=r"other settings.*count: 4 there, 5 asked"):
        audit.freeze(source, tmp_path / "w", count=5, near_copies=False)
    with pytest.raises(UserError, match=r"other settings.*seed"):
        audit.freeze(source, tmp_path / "w", count=4, seed=3, near_copies=False)
    kept = audit.freeze(source, tmp_path / "w", fraction=0.5, keep=True)  # As `annotate` does.
    assert kept == first
    other = store(tmp_path / "other", train=records[1:])
    with pytest.raises(UserError, match=r"other settings.*source_sha256"):
        audit.freeze(other, tmp_path / "w", count=4, keep=True)


def test_a_freeze_that_was_killed_goes_on(records, tmp_path):
    source = store(tmp_path / "source", train=records)
    audit.freeze(source, tmp_path / "w", count=4, near_copies=False)
    whole = audit.exclude_list(tmp_path / "w").read_text()
    for name in ("frozen.json", "exclude.jsonl", "training/dataset_info.json"):
        (tmp_path / "w" / "audit" / name).unlink()  # As if killed before it was written.
    for path in (tmp_path / "w" / "audit" / "training").iterdir():
        path.unlink()
    audit.freeze(source, tmp_path / "w", count=4, near_copies=False)
    assert audit.exclude_list(tmp_path / "w").read_text() == whole


def test_nothing_is_frozen_after_a_round(records, tmp_path):
    source = store(tmp_path / "source", train=records)
    (tmp_path / "w" / "round-0").mkdir(parents=True)
    with pytest.raises(UserError, match="round-0 already"):
        audit.freeze(source, tmp_path / "w", count=4)
    with pytest.raises(UserError, match="audit freeze"):
        audit.frozen_ids(tmp_path / "w")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a fraction or a count"),
        ({"fraction": 0.1, "count": 3}, "either a fraction or a count"),
        ({"fraction": 1.5}, "between 0 and 1"),
        ({"fraction": 1e-9}, "would freeze 0 of 20"),
        ({"count": 20}, "would freeze 20 of 20"),
        ({"count": 3, "split": "val"}, "no split 'val'"),
    ],
)
def test_settings_that_freeze_nothing_are_refused(options, message, records, tmp_path):
    source = store(tmp_path / "source", train=records)
    with pytest.raises(UserError, match=message):
        audit.freeze(source, tmp_path / "w", **options)
    assert not (tmp_path / "w" / "audit" / "frozen.json").exists()


def test_the_command_train_does_not_start_on_frozen_images(frozen, small_run, tmp_path, capsys):
    workdir, _, _ = frozen
    source = json.loads((workdir / "audit" / "frozen.json").read_text())["settings"]["source"]
    listed = str(audit.exclude_list(workdir))
    small_run["input"] |= {"records": source, "exclude": listed, "on_excluded": "refuse"}
    config = tmp_path / "run.py"
    config.write_text(f"""from ml_collections import ConfigDict
def get_config():
    return ConfigDict({small_run!r})
""")
    assert main(["train", "--config", str(config), "--workdir", str(tmp_path / "run")]) == 2
    assert "5 training records" in capsys.readouterr().err

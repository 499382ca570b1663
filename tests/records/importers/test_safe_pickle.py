# SPDX-License-Identifier: Apache-2.0
"""Pickles: plain data of every protocol comes in, and nothing in a file is ever run."""

import collections
import copyreg
import datetime
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from florence2_jax.records.importers.safe_pickle import MAX_DEPTH, loads_plain, read_pickle
from florence2_jax.typing import UserError

REF = {
    "sent_ids": [0, 1],
    "file_name": "COCO_train2014_000000581857_16.jpg",
    "ann_id": 900100184613,
    "ref_id": -1,
    "sentences": [{"tokens": ["the", "lady"], "raw": "THE LADY", "sent": "the lady"}] * 2,
    "is_it": [True, False, None, 0.5, "naïve", 3, 300, 70_000, -(2**40)],
}

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
    max_leaves=12,
)


def refusal(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        loads_plain(data)
    return str(caught.value)


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
@example([REF, REF], 0)
@example([REF, REF], 2)
@example([REF, REF], 4)
def test_plain_data_comes_back_from_every_protocol(value, protocol):
    assert loads_plain(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    ("data", "value"),
    [
        # What Python 2 wrote: its texts are bytes.
        (b"(lp1\nS'the lady'\np2\naVna\\u00efve\np3\nag2\na.", ["the lady", "naïve", "the lady"]),
        (b"\x80\x02]q\x01(U\x05na\xc3\xafvT\x02\x00\x00\x00oke.", ["naïv", "ok"]),
        (b"S'na\\xc3\\xafve'\n.", "naïve"),
        (b"S'na\\xefve'\n.", "na\udcefve"),  # Latin-1, left for the mending of texts.
        (b"(dS'a'\nI01\nsS'b'\nL7L\ns.", {"a": True, "b": 7}),
    ],
)
def test_pickles_of_python_2(data, value):
    assert loads_plain(data) == value


class Calls:
    """Pickles into a call of `os.system`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State:
    pass


def hostile(marker: str) -> dict[str, bytes]:
    copyreg.add_extension("os", "system", 240)
    try:
        extension = pickle.dumps(os.system, 2)
    finally:
        copyreg.remove_extension("os", "system", 240)
    return {
        "os.system": pickle.dumps(Calls(os.system, f"touch {marker}"), 2),
        "os.system in text": f"cos\nsystem\n(S'touch {marker}'\ntR.".encode(),
        "os.system by a newer name": pickle.dumps(Calls(os.system, f"touch {marker}"), 4),
        "builtins.eval": pickle.dumps([Calls(eval, f"open({marker!r}, 'w')")], 2),
        "deep in a list of refs": pickle.dumps([REF, {"x": Calls(os.mkdir, marker)}], 0),
        "INST": f"(S'touch {marker}'\nios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nS'touch {marker}'\no.".encode(),
        "NEWOBJ": pickle.dumps(State(), 2),
        "BUILD": b"]}b.",
        "an extension of copyreg": extension,
        "copyreg._reconstructor": pickle.dumps(State(), 0),
        "a persistent id": b"P1\n.",
        "a persistent object": b"I1\nQ.",
        "a function": pickle.dumps(len),
        "an array": pickle.dumps(np.arange(3)),
        "a date": pickle.dumps(datetime.date(2020, 1, 1)),
        "an ordered dict": pickle.dumps(collections.OrderedDict(a=1)),
        "a set": pickle.dumps({1}),
        "a tuple": pickle.dumps((1, 2)),
        "bytes": pickle.dumps(b"12"),
        "a buffer from outside": b"\x80\x05\x97.",
    }


@pytest.mark.parametrize("name", hostile("x"))
def test_nothing_is_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = hostile("marker")[name]
    assert refusal(data).startswith("it has the instruction ")
    (tmp_path / "refs.p").write_bytes(data)
    with pytest.raises(UserError, match=r"refs\.p: refused: it has the instruction"):
        read_pickle(tmp_path / "refs.p")
    assert [path.name for path in tmp_path.iterdir()] == ["refs.p"]


def test_the_second_lock_holds_alone(monkeypatch, tmp_path):
    from florence2_jax.records.importers import safe_pickle

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(safe_pickle, "_check_instructions", lambda data: None)
    assert refusal(hostile("marker")["os.system"]) == "it asks for posix.system"
    assert refusal(b"P1\n.") == "it asks for a persistent object"
    assert not list(tmp_path.iterdir())


def nested(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1) + b"."


def laughs(levels: int) -> bytes:
    """A list of ten times a list of ten times ... a list, by the memo."""
    parts = [b"(]U\x02haa"]
    for level in range(levels):
        place = bytes([level])
        parts.append(b"q" + place + b"](" + (b"h" + place) * 10 + b"e")
    return b"".join((*parts, b"l."))


def test_bombs_are_refused_before_they_go_off():
    big_memo = b"]r" + struct.pack("<I", 2**32 - 1) + b"."
    many = 30_000
    text = b"(X" + struct.pack("<I", many) + b"a" * many + b"q\x00" + b"h\x00" * many + b"l."
    bombs = {
        "a memo of 64 GB": (big_memo, "it names place 4294967295 of its memo"),
        "the same in text": (b"]p999999999\n.", "it names place 999999999 of its memo"),
        "a place before the first": (b"]p-1\n.", "it names place -1 of its memo"),
        "laughs": (laughs(9), "refers to one thing too often"),
        "a list in itself": (b"]q\x00h\x00a.", "nested too deeply"),
        "one text, many times": (text, "refers to one thing too often"),
        "depth": (nested(MAX_DEPTH + 2), "nested too deeply"),
        "great depth": (nested(20_000), "nested too deeply"),
        "a long number": (b"\x8a\xff" + b"\x01" * 255 + b".", "more than 64 bits"),
        "a longer one": (b"\x8b" + struct.pack("<i", many) + bytes(many) + b".", "LONG4"),
        "digits": (b"I" + b"9" * 4000 + b"\n.", "more than 64 bits"),
        "digits without end": (b"I" + b"9" * many + b"\n.", "damaged"),
        "a text of 4 GB": (b"X\xff\xff\xff\xff.", "damaged or cut off"),
        "a text of 16 EB": (b"\x8d" + b"\xff" * 8 + b".", "BINUNICODE8"),
        "a frame of 16 EB": (b"\x80\x04\x95" + b"\xff" * 8 + b"].", ""),
        "a frame of 64 GB": (b"\x80\x04\x95" + struct.pack("<Q", 2**36) + b"].", "damaged"),
    }
    tracemalloc.start()
    try:
        for name, (data, why) in bombs.items():
            assert why in refusal(data), name
        assert tracemalloc.get_traced_memory()[1] < 2**29
    finally:
        tracemalloc.stop()
    assert loads_plain(nested(MAX_DEPTH + 1)) is not None


def test_damaged_pickles_are_refused():
    whole = pickle.dumps([REF], 2)
    for length in range(len(whole)):
        refusal(whole[:length])
    for data in (b"", b".", b"a.", b"e.", b"(.", b"]h\x00.", b"}]K\x01s.", b"NNa.", b"I1\nI2\na."):
        refusal(data)
    assert pickletools.optimize(whole) != whole and loads_plain(pickletools.optimize(whole)) == [
        REF
    ]


def test_flipped_bytes_do_no_harm():
    rng = np.random.default_rng(0)
    whole = [pickle.dumps([REF], protocol) for protocol in (0, 2, 4)]
    outcomes: collections.Counter = collections.Counter()
    for i in range(600):
        data = bytearray(whole[i % 3])
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        try:
            loads_plain(bytes(data))
            outcomes["read"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 50 and outcomes["refused"] > 50


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_pickle(tmp_path / "refs.p")
    (tmp_path / "refs.p").write_bytes(b"")
    with pytest.raises(UserError, match=r"refs\.p: refused: it is cut off; only pickles of plain"):
        read_pickle(tmp_path / "refs.p")

# SPDX-License-Identifier: Apache-2.0
"""JSON of others: what is read, what is made harmless, what is refused and how that is said."""

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_helpers import message

from florence2_jax.records.importers.json_files import (
    MAX_DEPTH,
    as_id,
    as_text,
    field,
    is_set,
    parse_json,
    read_json,
    rows,
    shown,
)


def depth(value) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_its_encodings_with_its_digest(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text('{"é": [1, 2.5, "x", null]}', encoding)
    digest = hashlib.sha256()
    assert read_json(path, digest=digest) == {"é": [1, 2.5, "x", None]}
    assert digest.hexdigest() == hashlib.sha256(b"a.json" + path.read_bytes()).hexdigest()


def test_numbers_are_such_that_floats_can_be_made_of_them():
    text = b"[9007199254740993, 1000000000000000000000, -1e999, NaN, " + b"9" * 5000 + b"]"
    exact, large, infinite, nan, huge = parse_json(text, "x")
    assert (exact, large, infinite, huge) == (2**53 + 1, 1e21, -math.inf, math.inf)
    assert math.isnan(nan)
    assert all(isinstance(value, float) for value in (large, infinite, nan, huge))


@given(st.lists(st.sampled_from(["[", '{"a": 1, "b": ']), max_size=60))
def test_what_lies_too_deep_is_none_and_its_neighbours_stay(openings):
    closings = ("]" if opening == "[" else "}" for opening in reversed(openings))
    text = f"[7, {''.join(openings)}5{''.join(closings)}, [8]]"
    first, nested, last = parse_json(text.encode(), "x")
    assert (first, last) == (7, [8])
    assert depth([nested]) == min(MAX_DEPTH, 1 + len(openings))


def test_what_is_no_json_says_so(tmp_path):
    path = tmp_path / "a.json"
    assert message(read_json, path) == (
        f"{path}: no such file; fetch it, or give the folder that holds it"
    )
    assert message(read_json, tmp_path).startswith(f"{tmp_path}: no such file")
    path.write_text("{}   ")
    assert message(read_json, path, 4) == (f"{path}: 5 bytes, more than the 4 read; split the file")
    for data in (b"", b"{", b"\xe4", b'{"a": tru', b"\xff\xfe\x00", b"nothing"):
        path.write_bytes(data)
        assert message(read_json, path).startswith(f"{path}: not JSON (")
    path.write_text("[" * 10**6)
    assert message(read_json, path) == (
        f"{path}: not JSON (nested too deeply); fetch or export it again"
    )


def test_rows_and_fields(tmp_path):
    assert rows({"a": [1]}, "a", tmp_path, "a list") == [1]
    for content in ({}, {"a": 1}, [], None):
        assert message(rows, content, "a", tmp_path, "a list") == (
            f"{tmp_path}: no list 'a' in it; is it a list?"
        )
    assert field({"a": 1}, "a") == 1
    assert field([1], "a") is field({}, "a") is None


def test_ids_are_one_however_they_are_written():
    assert as_id(12) == as_id("12") == as_id(12.0) == 12
    assert as_id("012") == "012" and as_id("a") == "a" and as_id("0") == 0
    for value in (None, True, "", 1.5, math.nan, math.inf, [1], {}):
        assert as_id(value) is None


def test_texts_flags_and_what_the_books_show():
    assert as_text(" a\u00e9 ") == "a\u00e9"
    assert as_text("a\x00\ud800") == "a\\x00\\ud800"
    assert as_text(None, "x") == as_text(" ", "x") == "x"
    assert is_set(1) and is_set("1") and is_set(True) and is_set(1.0)
    assert not any(map(is_set, (0, "0", None, [1], math.nan, "")))
    assert shown({"id": 1}) == "{'id': 1}"
    assert len(shown({str(i): "x" * 10**6 for i in range(100)})) <= 200

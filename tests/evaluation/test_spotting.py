# SPDX-License-Identifier: Apache-2.0
"""Words with their place: the rules of ICDAR 2015, one by one."""

import math
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2_jax.evaluation.polygon_overlap import overlap_area, polygon_iou
from florence2_jax.evaluation.result_files.icdar import read_words
from florence2_jax.evaluation.spotting import Word, count_words, is_same_word, spotting_scores


def bar(x0, x1, text, y0=0.0, y1=10.0):
    return Word((x0, y0, x1, y0, x1, y1, x0, y1), text)


def scores_of(found, true):
    return spotting_scores([count_words(found, true)])


def test_by_hand():
    true = [bar(0, 100, "STOP"), bar(200, 300, "HERE"), bar(400, 500, "NOW")]
    found = [bar(0, 60, "stop"), bar(200, 250, "HERE"), bar(400, 500, "NOT"), bar(400, 500, "NOW")]
    # The first pair has IoU 0.6; the second 0.5, which is not more than that; the third pairs with
    # the first answer there, whose text is wrong.
    scores = scores_of(found, true)
    assert (scores["precision"], scores["recall"]) == (1 / 4, 1 / 3)
    assert scores["hmean"] == pytest.approx(2 * 1 / (4 + 3))
    assert scores["det_hmean"] == pytest.approx(2 * 2 / (4 + 3))
    assert scores["word_f1"] == pytest.approx(2 * 3 / (4 + 3))


def test_what_lies_in_a_region_not_cared_for_is_left_out():
    true = [bar(0, 100, None), bar(200, 300, "HERE")]
    inside, half, here = bar(40, 100, "x"), bar(50, 150, "x"), bar(200, 300, "HERE")
    assert scores_of([inside, here], true)["hmean"] == 1
    assert scores_of([half, here], true)["precision"] == 0.5  # Half is not more than half.


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [
        ("Stop", "sTOP", True),
        ("STOP", "(STOP)", True),
        ("STOP.", "STOP", False),  # Marks may be missing, not added.
        ("STOP", "STOP!!", False),  # One at either end.
        ("STOP!", "STOP!!", True),
        ("ST", "S.T", False),
        ("", "!", True),
    ],
)
def test_marks_at_the_ends_of_the_truth_may_be_missing(found, true, expected):
    assert is_same_word(found, true) == expected


def test_degenerate_input():
    for scores in (spotting_scores([]), scores_of([bar(0, 9, "a")], [])):
        assert all(map(math.isnan, scores.values()))
    assert all(map(math.isnan, scores_of([], [bar(0, 9, None)]).values()))
    assert not any(scores_of([], [bar(0, 9, "a")]).values())
    twice = scores_of([bar(0, 9, "a")] * 2, [bar(0, 9, "a")])
    assert (twice["precision"], twice["recall"]) == (0.5, 1)
    with pytest.raises(ValueError, match="not finite"):
        bar(math.nan, 9, "a")
    line = Word((0, 0, 9, 0, 9, 0, 0, 0), "a")  # Without an area it is nowhere.
    assert scores_of([line], [line])["hmean"] == 0


coordinate = st.floats(-50, 50).map(lambda value: round(value, 3))


@given(st.tuples(*[coordinate] * 6), st.tuples(*[coordinate] * 6))
def test_overlap_is_symmetric_and_at_most_either_area(a, b):
    shared = overlap_area(a, b)
    assert shared == pytest.approx(overlap_area(b, a), abs=1e-6)
    assert shared <= min(overlap_area(a, a), overlap_area(b, b)) + 1e-6


def test_overlap_of_concave_and_turned_outlines():
    arrow = (0, 0, 10, 0, 10, 10, 5, 5, 0, 10)  # A square without the triangle above it.
    assert overlap_area(arrow, arrow) == pytest.approx(75)
    assert overlap_area(arrow, (0, 5, 10, 5, 10, 10, 0, 10)) == pytest.approx(25)
    backwards = tuple(v for point in zip(arrow[-2::-2], arrow[::-2], strict=True) for v in point)
    assert polygon_iou([arrow], [backwards])[0, 0] == pytest.approx(1)
    far = tuple(v + 1e7 for v in arrow)
    assert polygon_iou([far], [far])[0, 0] == pytest.approx(1)


def test_a_korean_document(shared_data):
    """No published value by this protocol; the same rules over polygons of shapely 2.2 give it."""
    folder = shared_data / "metrics_golden" / "cleval_doc_kr"
    truth = folder / "gt" / "gt_eval_doc_v1_kr_single.zip"
    pairs, notes = read_words(truth, folder / "pred" / "res_eval_doc_v1_kr_single.zip")
    assert (len(pairs), notes) == (1, ())
    scores = spotting_scores([count_words(found, true) for found, true in pairs])
    assert scores["hmean"] == pytest.approx(HMEAN, abs=1e-12)
    assert scores["det_hmean"] == pytest.approx(DET_HMEAN, abs=1e-12)


HMEAN, DET_HMEAN = 2 * 149 / (184 + 168), 2 * 154 / (184 + 168)


def test_words_of_a_zip(tmp_path):
    def write(name, **files):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for stem, text in files.items():
                archive.writestr(f"inner/{stem}.txt", text)
        return path

    truth = write("gt.zip", gt_img_1="0,0,9,0,9,5,0,5,Café, bar\r\n1,1,2,2,###\n", gt_img_2="")
    found = write("res.zip", res_img_1="\ufeff0,0,9,0,9,5,0,5,CAFÉ, BAR\n")
    pairs, notes = read_words(truth, found)
    assert [[word.text for word in true] for _, true in pairs] == [["Café, bar", None], []]
    assert notes == ("1 of 2 images without a prediction, counted as empty",)
    assert spotting_scores([count_words(*pair) for pair in pairs])["hmean"] == 1

# SPDX-License-Identifier: Apache-2.0
"""Files of words: every published form, what a row may look like, and which image it belongs to."""

import pytest
from import_helpers import imported, message, why, write_jpegs

from florence2_jax.records.importers import detect, icdar, plan_import
from florence2_jax.records.importers.icdar import read_rows


def words(content, **options):
    return [(len(r.points), r.text, r.is_ignored, r.error) for r in read_rows(content, **options)]


def test_rows_of_2013():
    assert words('38, 43, 920, 215, "Tiredness"\n275, 264, 665, 450, "kills, \\"fast\\""\r\n') == [
        (4, "Tiredness", False, ""),
        (4, 'kills, \\"fast\\"', False, ""),
    ]
    assert words('158 128 411 181 "Footpath"\n\n443 128 501 169 "To"\n64 200 363 243 "2,5"\n') == [
        (4, "Footpath", False, ""),
        (4, "To", False, ""),
        (4, "2,5", False, ""),
    ]


def test_rows_of_2015():
    rows = [
        "377,117,463,117,465,130,378,130,Genaxis Theatre",
        "493,115,519,115,519,131,493,131,[06]",
        "374,155,409,155,409,170,374,170,###",
        "1,2,3,4,5,6,7,8,1,000",
        '1,2,3,4,5,6,7,8,"so", he said',
        "1,2,3,4,5,6,7,8,2015",
        "1,2,3,4,5,6,7,8",
        "1,2,3,4,5,6,7,8,",
        "1,2,3",
        "one,2,3,4,5,6,7,8,x",
    ]
    assert words("\n".join(rows)) == [
        (8, "Genaxis Theatre", False, ""),
        (8, "[06]", False, ""),
        (8, "###", True, ""),
        (8, "1,000", False, ""),
        (8, '"so", he said', False, ""),
        (8, "2015", False, ""),
        (8, None, False, ""),
        (8, "", True, ""),
        (0, None, False, "does not begin with coordinates"),
        (0, None, False, "does not begin with coordinates"),
    ]


def test_rows_of_total_text():
    content = (
        "x: [[115 503 494 115]], y: [[322 346 426 404]], ornt: [u'm'], "
        "transcriptions: [u'nauGHTY']\n"
        "x: [[ 10  20\n 30  40  50  60]], y: [[1 2 3\n 4 5 6]], ornt: [u'c'], "
        'transcriptions: [u"JOE\'S, BAR"]\n'
        "x: [[1 2 3 4]], y: [[1 2 3 4]], ornt: [u'#'], transcriptions: [u'#']\n"
        "x: [[1 2 3 4]], y: [[1 2 3 4]], ornt: [u'h'], transcriptions: [u'caf\\xe9']\n"
        "x: [[1 2 3 4]], y: [[1 2 3]], ornt: [u'h'], transcriptions: [u'x']\n"
        "x: [[1 2 3 4]], y: nonsense\n"
    )
    assert words(content) == [
        (8, "nauGHTY", False, ""),
        (12, "JOE'S, BAR", False, ""),
        (8, "#", True, ""),
        (8, "café", False, ""),
        (0, None, False, "numbers of x and y differ"),
        (0, None, False, "not in the form of Total-Text"),
    ]
    assert read_rows(content)[0].points[:4] == ("115", "322", "503", "346")


def test_outlines_by_their_file():
    rows = ["1,2,3,4,5,6,7,8,9,10,curved, here", "1,2,3,4,5,6,7,8,2010", "1,2,3,4,5,6,###"]
    assert [word[:3] for word in words("\n".join(rows))] == [
        (10, "curved, here", False),
        (8, "2010", False),
        (6, "###", True),
    ]
    assert words("1,2,3,4,5,6,7,8,9,10,11\n", has_outlines=True)[0][:2] == (10, "11")
    assert words('1,2,3,4,5,6,"quoted"\n1,2,3,4,5,6,"too"')[1][:2] == (6, "too")


def write_texts(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        data = content if isinstance(content, bytes) else content.encode("utf-8-sig")
        (folder / f"{name}.txt").write_bytes(data)
    return folder


def test_incidental_scenes_of_two_splits(tmp_path):
    source = tmp_path / "ic15"
    row = "2,3,12,3,12,9,2,9,Café\n1,1,9,1,9,5,1,5,###\n"
    write_texts(source / "ch4_training_gt", gt_img_1=row, gt_img_2="", gt_img_9=row)
    write_texts(source / "Challenge4_Test_Task1_GT", gt_img_1=row.encode("cp1252"))
    write_jpegs(source, *(f"ch4_training_images/img_{i}.jpg" for i in (1, 2, 3)))
    write_jpegs(source, "ch4_test_images/img_1.jpg")
    assert detect(source) == "icdar"
    report, records = imported("icdar", source, tmp_path / "s")
    assert report["splits"] == {"test": 1, "train": 2}
    counts = report["counts"]
    assert (counts["region"]["read"], counts["region"]["kept"], counts["quad"]["kept"]) == (4, 4, 4)
    assert counts["image"]["set_aside"] == {"no image of its name": 1}
    assert counts["image"]["noted"] == {"images without a file of words, not read": 1}
    assert counts["file"]["noted"] == {"no UTF-8, read as Windows-1252": 1}
    for name in ("ch4_training_images/img_1.jpg", "ch4_test_images/img_1.jpg"):
        word, ignored = records[name].regions
        assert word.label("text") == "Café" and word.quad == (2, 3, 12, 3, 12, 9, 2, 9)
        assert ignored.is_crowd and ignored.label("text") == ""
    assert records["ch4_training_images/img_2.jpg"].regions == ()


def test_images_elsewhere_and_bad_rows(tmp_path):
    gt = '2, 3, 12, 9, "Hi"\n30, 20, 25, 10, "Back"\nnonsense\n50, 50, 60, 60, "Out"\n'
    write_texts(tmp_path / "gt", gt_1=gt, poly_gt_img2="1,1,9,1,12,5,9,9,1,9,five\n")
    write_jpegs(tmp_path / "photos", "1.jpg", "img2.jpg")
    report, records = imported("icdar", tmp_path / "gt", tmp_path / "s", images=tmp_path / "photos")
    first, second = records["1.jpg"].regions
    assert first.box == (2, 3, 12, 9) and second.quad == (25, 10, 30, 10, 30, 20, 25, 20)
    (five,) = records["img2.jpg"].regions
    assert five.polygons == ((1, 1, 9, 1, 12, 5, 9, 9, 1, 9),) and five.quad is not None
    assert why(tmp_path / "s") == {
        ("region", "does not begin with coordinates"): 1,
        ("region", "box is not four finite numbers"): 1,
        ("quad", "no area within the image"): 1,
    }
    assert report["counts"]["region"]["read"] == 5


def test_two_images_of_a_name_are_no_guess(tmp_path):
    write_texts(tmp_path / "gt", gt_1='1, 1, 9, 9, "a"')
    write_jpegs(tmp_path, "gt/x.jpg", "a/1.jpg", "b/1.jpg")
    plan = plan_import("icdar", tmp_path)
    assert plan.ledger.counts()["image"]["set_aside"] == {"several images of its name": 1}


@pytest.mark.parametrize(
    "content",
    ["\n" * 200_000, "1," * 100_000, "x: [" * 50_000, " " * 200_000 + "x", "x: [[" + "1 " * 99_999],
)
def test_long_rows_take_no_time(content):
    assert isinstance(read_rows(content), list)


def test_what_is_no_word_file_says_so(tmp_path):
    write_texts(tmp_path, words="1,2,3,4,x")
    assert not icdar.detect(tmp_path) and not icdar.detect(tmp_path / "no")
    assert "no gt_NAME.txt" in message(plan_import, "icdar", tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC beyond the development kit: annotation files beside images, or images elsewhere."""

from import_helpers import imported, message, write_jpegs

from florence2_jax.records.importers import detect, plan_import, voc

SIZE = "<size><width>40</width><height>30</height></size>"
CAT = (
    "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax>"
    "</bndbox></object>"
)


def write_xmls(folder, *names, body=CAT):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"<annotation>{SIZE}{body}</annotation>")


def test_toy_example_with_its_images_elsewhere(shared_data, tmp_path):
    source = shared_data / "voc_toyexample_multiformat"
    xmls, images = source / "gts_vocpascal_format", source / "images"
    assert detect(xmls) == "voc"
    report, records = imported("voc", xmls, tmp_path / "s", images=images)
    image, region = report["counts"]["image"], report["counts"]["region"]
    assert (image["read"], image["kept"], region["read"], region["kept"]) == (10, 10, 12, 12)
    assert image["noted"] == {"images without an annotation file, not read": 2}
    first = records["2007_000549"]
    assert first.image == (images / "2007_000549.jpg").read_bytes()
    assert first.regions[0].box == (1, 49, 341, 499)
    assert records["2007_000733"].regions == ()


def test_export_of_labelme(shared_data, tmp_path):
    source = shared_data / "labelme_examples/bbox_detection/data_dataset_voc"
    report, records = imported("voc", source, tmp_path / "s")
    assert set(records) == {"2011_000003", "2011_000006", "2011_000025"}
    region = report["counts"]["region"]
    assert (region["read"], region["kept"]) == (9, 9)


def test_files_beside_their_images_in_folders_of_splits(tmp_path):
    source = tmp_path / "export"
    write_xmls(source, "train/a.xml", "train/b.xml", "valid/a.xml", "other/c.xml")
    write_jpegs(source, "train/a.jpg", "train/b.jpg", "valid/a.jpg", "valid/bare.jpg")
    assert voc.detect(source)
    report, records = imported("voc", source, tmp_path / "s")
    assert report["splits"] == {"train": 2, "val": 1}
    assert set(records) == {"train/a", "train/b", "valid/a"}
    assert report["counts"]["image"]["noted"] == {"images without an annotation file, not read": 1}


def test_images_option_keeps_the_lists(tmp_path):
    source, images = tmp_path / "kit", tmp_path / "photos"
    write_xmls(source / "Annotations", "a.xml", "b.xml")
    (source / "ImageSets" / "Main").mkdir(parents=True)
    (source / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    write_jpegs(images, "a.jpg", "b.jpg")
    report, records = imported("voc", source, tmp_path / "s", images=images)
    assert report["splits"] == {"val": 1} and set(records) == {"a"}
    assert report["counts"]["image"]["set_aside"] == {"in no list of ImageSets/Main": 1}


def test_masks_are_noted(tmp_path):
    write_xmls(tmp_path / "v" / "Annotations", "a.xml")
    write_jpegs(tmp_path / "v", "JPEGImages/a.jpg", "SegmentationObject/a.png")
    report, _ = imported("voc", tmp_path / "v", tmp_path / "s")
    assert report["counts"]["file"]["noted"] == {"masks (SegmentationObject), not read": 1}


def test_detect_says_no(tmp_path, shared_data):
    write_xmls(tmp_path / "flickr" / "Annotations", "1.xml")  # Flickr30k Entities has them, too.
    (tmp_path / "some.xml").write_text("<html/>")
    for folder in (tmp_path, tmp_path / "flickr", tmp_path / "no", tmp_path / "some.xml"):
        assert not voc.detect(folder)
    assert not voc.detect(shared_data / "mmocr_toy/det_toy_dataset")
    assert voc.detect(shared_data / "bccd_voc")
    assert "is no folder" in message(plan_import, "voc", tmp_path / "some.xml")

# SPDX-License-Identifier: Apache-2.0
"""Tesseract and OpenCV as specialists, the real programs on drawn and real images."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from florence2_jax.engine.specialists import create
from florence2_jax.engine.specialists.asking import ask
from florence2_jax.engine.specialists.base import Annotations, Failure, SpecialistError
from florence2_jax.engine.specialists.opencv import People
from florence2_jax.records.schema import Record

needs_tesseract = pytest.mark.skipif(
    shutil.which("tesseract") is None, reason="tesseract is not installed"
)


def record_of(image: Image.Image, id_: str = "a") -> Record:
    out = io.BytesIO()
    image.save(out, "PNG")
    return Record(id=id_, image=out.getvalue(), width=image.width, height=image.height)


def written(*lines: str) -> Record:
    image = Image.new("RGB", (420, 60 * len(lines) + 20), "white")
    font = ImageFont.load_default(36)
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 10 + 60 * i), line, fill="black", font=font)
    return record_of(image)


def loaded(type: str, **settings):
    specialist = create(type, **settings)
    specialist.load()
    return specialist


@needs_tesseract
def test_tesseract_reads_words_where_they_stand():
    pytest.importorskip("pytesseract")
    (found,) = ask(loaded("tesseract", page_mode=6), [written("STOP HERE", "NOW")])
    assert isinstance(found, Annotations), found
    assert [region.label("text") for region in found.regions] == ["STOP", "HERE", "NOW"]
    stop, here, now = found.regions
    assert stop.box[2] < here.box[0] and now.box[1] > stop.box[3] - 5
    for region in found.regions:
        x0, y0, x1, y1 = region.box
        assert region.quad == (x0, y0, x1, y0, x1, y1, x0, y1)
        assert 0.5 < region.provenance.score <= 1
        assert region.provenance.name.startswith("tesseract:eng@")


@needs_tesseract
def test_lines_join_their_words_and_the_unsure_are_left_out():
    pytest.importorskip("pytesseract")
    record = written("STOP HERE", "NOW")
    (found,) = ask(loaded("tesseract", page_mode=6, level="lines"), [record])
    assert [region.label("text") for region in found.regions] == ["STOP HERE", "NOW"]
    assert ask(loaded("tesseract", threshold=1.0), [record]) == [Annotations()]


@needs_tesseract
def test_what_tesseract_cannot_do_is_said_with_its_remedy():
    pytest.importorskip("pytesseract")
    with pytest.raises(SpecialistError, match="apt install tesseract-ocr-xyz"):
        loaded("tesseract", language="eng+xyz")
    late = ask(loaded("tesseract", image_timeout_s=0.001), [written("A")])[0]
    assert isinstance(late, Failure) and late.reason == "time-out"


def test_without_the_program_the_error_says_how_to_install_it():
    pytest.importorskip("pytesseract")
    with pytest.raises(SpecialistError, match="apt install tesseract-ocr"):
        create("tesseract", program="/no/such/tesseract")


def has(name: str) -> bool:
    return hasattr(pytest.importorskip("cv2"), name)


def test_opencv_5_which_has_no_detectors_is_refused_with_the_command_that_helps():
    if has("HOGDescriptor"):
        pytest.skip("this OpenCV has them")
    for type in ("opencv_people", "opencv_faces"):
        with pytest.raises(SpecialistError, match='pip install "opencv-python-headless'):
            loaded(type)


def test_opencv_4_finds_the_face_of_a_photograph():
    if not has("CascadeClassifier"):
        pytest.skip("OpenCV 5 has no cascades")
    data = pytest.importorskip("skimage.data")
    astronaut = data.astronaut()  # Her face is around (220, 120); the file comes with skimage.
    (found,) = ask(loaded("opencv_faces", threshold=0.0), [record_of(Image.fromarray(astronaut))])
    assert isinstance(found, Annotations), found
    best = found.regions[0]
    assert best.label("category") == "face"
    assert best.box[0] < 220 < best.box[2] and best.box[1] < 120 < best.box[3]


def test_opencv_4_looks_for_people_at_the_size_it_is_told():
    if not has("HOGDescriptor"):
        pytest.skip("OpenCV 5 has no histograms of gradients")
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
    people = loaded("opencv_people", threshold=0.0, max_side_px=200)
    outcomes = ask(people, [record_of(Image.fromarray(noise)), record_of(Image.new("RGB", (9, 9)))])
    assert all(isinstance(outcome, Annotations) for outcome in outcomes)
    assert outcomes[1] == Annotations()  # Smaller than the search window.


def test_margins_and_sizes_become_scores_and_boxes_of_the_record():
    class Told(People):  # What OpenCV finds, without OpenCV.
        def search(self, grey):
            assert grey.shape == (100, 50)
            corners = np.array([[0, 0, 20, 40], [1, 0, 20, 40], [30, 60, 60, 110]], float)
            return corners, np.array([0.0, 3.0, 1.0])

    told = Told(threshold=0.6, max_side_px=100, label="walker")
    (found,) = told.annotate([record_of(Image.new("RGB", (100, 200)))])
    assert [region.box for region in found.regions] == [(2, 0, 40, 80), (60, 120, 100, 200)]
    scores = [region.provenance.score for region in found.regions]
    assert scores == pytest.approx([0.9526, 0.7311], abs=1e-4)
    assert {region.label("category") for region in found.regions} == {"walker"}

# SPDX-License-Identifier: Apache-2.0
"""Models of transformers as specialists, on random checkpoints that `random_models.py` saves."""

import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from florence2_jax.engine.specialists import create
from florence2_jax.engine.specialists.asking import ask
from florence2_jax.engine.specialists.base import Annotations, Failure, SpecialistError
from florence2_jax.engine.specialists.choosing import Similarity, candidates, crop_box
from florence2_jax.engine.specialists.grounding import lower, surest
from florence2_jax.engine.specialists.mask_generation import mask_polygons
from florence2_jax.engine.specialists.phrases import phrase_spans
from florence2_jax.records.schema import Label, Region

pytest.importorskip("transformers")


@pytest.fixture
def loaded(checkpoint_folder):
    def load(type: str, family: str, **settings):
        specialist = create(type, model=checkpoint_folder(family), **settings)
        specialist = pickle.loads(pickle.dumps(specialist))  # As it comes to its worker.
        specialist.load()
        return specialist

    return load


def test_a_detector_finds_boxes_surest_first_and_none_below_its_threshold(loaded, make_record):
    records = [make_record(), make_record("b", (50, 60), 1), make_record("c", (60, 40), 2)]
    everything = ask(loaded("detection", "detr", threshold=0.0), records)
    assert all(len(found.regions) >= 3 for found in everything)
    for found, record in zip(everything, records, strict=True):
        scores = [region.provenance.score for region in found.regions]
        assert scores == sorted(scores, reverse=True)
        assert {region.label("category") for region in found.regions} <= {"person", "dog"}
        assert all(0 <= r.box[0] < r.box[2] <= record.width for r in found.regions)
    cut = sorted(region.provenance.score for region in everything[0].regions)[1]
    fewer = ask(loaded("detection", "detr", threshold=cut - 1e-6), records[:1])
    assert len(fewer[0].regions) == len(everything[0].regions) - 1
    one = ask(loaded("detection", "detr", threshold=0.0, max_boxes=1), records[:1])
    assert len(one[0].regions) == 1


def test_what_a_detector_says_does_not_depend_on_the_batch(loaded, make_record):
    detector = loaded("detection", "detr", threshold=0.0, batch_size=3)
    records = [make_record(), make_record("b", (50, 60), 1), make_record("c", (60, 40), 2)]
    together = ask(detector, records)
    for record, found in zip(records, together, strict=True):
        alone = ask(detector, [record])[0]
        boxes = [np.array([region.box for region in f.regions]) for f in (alone, found)]
        np.testing.assert_allclose(*boxes, atol=1e-2)  # Other kernels for other batch sizes.


def test_an_image_that_does_not_decode_fails_alone(loaded, make_record):
    detector = loaded("detection", "detr", threshold=0.0)
    broken = make_record("b", image=b"\x89PNG\r\n\x1a\nbroken")
    found = ask(detector, [make_record(), broken])
    assert isinstance(found[0], Annotations)
    assert isinstance(found[1], Failure) and found[1].reason == "unreadable image"


def test_grounding_ties_the_phrases_of_a_text_to_boxes_with_both_scores(loaded, make_record):
    grounder = loaded("grounding", "grounding_dino", box_threshold=0.0, phrase_threshold=0.0)
    found = ask(grounder, [make_record()])[0]
    assert isinstance(found, Annotations), found
    (grounding,) = found.groundings
    assert [grounding.phrase(s) for s in grounding.spans] == ["A red car", "a dog", "the street"]
    for span in grounding.spans:
        assert span.phrase_score is not None
        assert len(span.box_scores) == len(span.boxes) <= 20
        assert list(span.box_scores) == sorted(span.box_scores, reverse=True)
    nothing = loaded("grounding", "grounding_dino", box_threshold=1.0)
    assert ask(nothing, [make_record()]) == [Annotations()]
    assert ask(grounder, [make_record(texts=())]) == [Annotations()]


def test_probabilities_of_a_phrase_are_those_of_its_own_tokens(loaded, make_record):
    import torch

    grounder = loaded("grounding", "grounding_dino", box_threshold=0.0)
    image = Image.new("RGB", (60, 40), "red")
    probs, boxes, offsets = grounder._ask("A red car", image)
    inputs = grounder._processor(images=image, text="a red car.", return_tensors="pt")
    with torch.inference_mode():
        outputs = grounder._module(**inputs)
    expected = outputs.logits[0].sigmoid().numpy()[:, : len(offsets)]
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    assert offsets == [(0, 0), (0, 1), (2, 5), (6, 9), (9, 10), (0, 0)]
    processed = grounder._processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.0, target_sizes=[(40, 60)]
    )[0]
    np.testing.assert_allclose(boxes, processed["boxes"].numpy(), atol=1e-3)


@pytest.mark.parametrize("family", ["blip", "git"])
def test_a_caption_has_a_score_and_the_granularity_that_is_asked_for(loaded, make_record, family):
    captioner = loaded("captioning", family, granularity="detailed", max_new_tokens=6)
    records = [make_record(), make_record("b", (50, 60), 1)]
    for found in ask(captioner, records):
        (text,) = found.texts
        assert text.granularity == "detailed" and text.text == text.text.strip()
        assert text.provenance.kind == "specialist" and 0 < text.provenance.score < 1
        assert text.provenance.name.startswith("captioning:")


def test_the_score_of_a_caption_is_the_mean_probability_of_its_tokens(loaded, make_record):
    import torch

    captioner = loaded("captioning", "blip", max_new_tokens=5)._captioner
    image = Image.open(io.BytesIO(make_record().image)).convert("RGB")
    ((text, score),) = captioner.caption([image])
    pixels = captioner.processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        ids = captioner.module.generate(pixel_values=pixels, max_new_tokens=5, do_sample=False)
        features = captioner.module.vision_model(pixel_values=pixels)[0]
        logits = captioner.module.text_decoder(
            input_ids=ids, encoder_hidden_states=features, return_dict=True
        ).logits
    probs = logits.log_softmax(dim=-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    special = torch.tensor(captioner.processor.tokenizer.all_special_ids)
    words = probs[~torch.isin(ids[0, 1:], special)]
    assert len(words) and score == pytest.approx(float(words.mean().exp()), rel=1e-3)
    assert text == captioner.processor.decode(ids[0], skip_special_tokens=True).strip()


def test_masks_belong_to_the_regions_that_have_none(loaded, make_record):
    masker = loaded("masks", "sam", min_part=0.0)
    record = make_record()
    has_one = Region(box=(1.0, 1.0, 9.0, 9.0), polygons=((1.0, 1.0, 9.0, 1.0, 9.0, 9.0),))
    record = make_record(regions=(has_one, *record.regions))
    found = ask(masker, [record])[0]
    assert isinstance(found, Annotations)
    assert found.masks and {index for index, _, _ in found.masks} <= {1, 2}
    for _, polygons, provenance in found.masks:
        assert polygons and 0 <= provenance.score <= 1
    few = loaded("masks", "sam", min_part=0.0, boxes_at_a_time=1)
    for one, other in zip(found.masks, ask(few, [record])[0].masks, strict=True):
        assert one[:2] == other[:2]


def test_a_mask_becomes_outlines_without_crumbs():
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:25] = True
    mask[30, 30] = True
    assert mask_polygons(mask, tolerance_px=1.0, min_part=0.02) == (
        (5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0),
    )
    assert mask_polygons(np.zeros((4, 4), bool), tolerance_px=1.0, min_part=0.0) == ()


def test_a_region_is_called_what_is_most_similar_to_its_pixels(
    loaded, make_record, checkpoint_folder
):
    record = make_record()
    chooser = loaded(
        "region_captions", "blip", similarity_model=checkpoint_folder("clip"), min_side_px=8
    )
    found = ask(chooser, [record])[0]
    assert isinstance(found, Annotations), found
    assert sorted(index for index, _ in found.labels) == [0, 1]
    image = Image.open(io.BytesIO(record.image))
    for index, label in found.labels:
        assert label.kind == "brief"
        crop = image.crop(crop_box(record.regions[index].box, record.size, 0.1))
        (caption, _), *_ = chooser._captioner.caption([crop])
        options = candidates(record.regions[index], caption)
        scores = chooser._similarity.compare([crop], options)[0]
        assert record.regions[index].label("category") in options
        assert label.text == options[int(scores.argmax())]
        assert label.provenance.score == pytest.approx(float(scores.max()), abs=1e-5)


def test_small_regions_and_writing_are_not_described(loaded, make_record, checkpoint_folder):
    small = Region(box=(0.0, 0.0, 8.0, 30.0), labels=(Label(text="car"),))
    word = Region(box=(0.0, 0.0, 30.0, 30.0), labels=(Label(text="STOP", kind="text"),))
    done = Region(box=(0.0, 0.0, 30.0, 30.0), labels=(Label(text="a car", kind="brief"),))
    chooser = create(
        "region_captions",
        model=checkpoint_folder("blip"),
        similarity_model=checkpoint_folder("clip"),
    )
    assert chooser._wanted(make_record(regions=(small, word, done))) == []


def test_similarity_is_the_cosine_of_the_model_itself(checkpoint_folder, make_record):
    import torch

    where = dict(revision="main", device="cpu", dtype="float32")
    similarity = Similarity.load(checkpoint_folder("clip"), **where)
    image = Image.new("RGB", (50, 30), "red")
    texts = ["car", "a longer text"]
    inputs = similarity.processor(text=texts, images=image, return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = similarity.module(**inputs)
    cosines = (output.image_embeds @ output.text_embeds.T).numpy()
    np.testing.assert_allclose(similarity.compare([image], texts), cosines.clip(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("A red car with a dog on the street.", ["A red car", "a dog", "the street"]),
        ("two people sitting near an old building", ["two people", "an old building"]),
        ("The image shows it.", []),
        ("a dog, a cat and the each other", ["a dog", "a cat"]),
        ("", []),
    ],
)
def test_phrases_are_found_without_a_parser(text, phrases):
    assert [text[start:end] for start, end in phrase_spans(text)] == phrases


def test_small_letters_stay_at_their_places():
    assert lower("İSTANBUL Car") == "İstanbul car"


def test_of_boxes_that_overlap_the_surest_stays():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], float)
    scores = np.array([0.5, 0.9, 0.6])
    assert surest(boxes, scores, 0.2, 0.7) == [1, 2]
    assert surest(boxes, scores, 0.2, 1.0) == [1, 2, 0]
    assert surest(boxes, scores, 0.95, 0.7) == []


def test_a_model_that_is_missing_or_of_another_kind_says_what_to_give(checkpoint_folder, tmp_path):
    for model in (str(tmp_path / "no folder"), checkpoint_folder("clip"), "no-such-folder"):
        specialist = create("detection", model=model)
        with pytest.raises(SpecialistError, match=r"folder|model"):
            specialist.load()
    parserless = create("grounding", model=checkpoint_folder("clip"), spacy_model="no_pipeline")
    with pytest.raises(SpecialistError, match="spacy download"):
        parserless.load()


def test_the_version_changes_with_settings_and_weights_but_not_with_how_to_run(
    checkpoint_folder, tmp_path
):
    folder = shutil.copytree(checkpoint_folder("detr"), tmp_path / "copy")
    first = create("detection", model=str(folder))
    assert first.version == create("detection", model=str(folder), batch_size=9).version
    assert first.version != create("detection", model=str(folder), threshold=0.5).version
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x42")
    assert first.version != create("detection", model=str(folder)).version


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # Of the switch used below.
@pytest.mark.parametrize(
    ("type", "family", "settings"),
    [
        ("detection", "detr", dict(threshold=0.0)),
        ("grounding", "grounding_dino", dict(box_threshold=0.0, phrase_threshold=0.0)),
        ("captioning", "blip", dict(max_new_tokens=4, num_beams=2)),
        ("masks", "sam", dict(min_part=0.0)),
        ("region_captions", "blip", dict(min_side_px=8)),
    ],
)
def test_every_model_also_computes_in_half_the_bits(
    loaded, make_record, checkpoint_folder, type, family, settings
):
    if type == "region_captions":
        settings = settings | {"similarity_model": checkpoint_folder("clip")}
    import torch

    specialist = loaded(type, family, dtype="bfloat16", **settings)
    # oneDNN's products in bfloat16 end the process on some virtual machines (illegal instruction).
    with torch.backends.mkldnn.flags(enabled=False):
        (found,) = ask(specialist, [make_record()])
    assert isinstance(found, Annotations) and found != Annotations(), found

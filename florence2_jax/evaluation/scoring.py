# SPDX-License-Identifier: Apache-2.0
"""Result files of any model -> the numbers of the literature: the table behind `score`.

A family is a protocol and the files it is exchanged in. Each is documented by its reader in
`result_files`, and by the metric that it names.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from florence2_jax.evaluation.anls import anls
from florence2_jax.evaluation.captions import caption_scores, rouge_similarity
from florence2_jax.evaluation.dense_captions import dense_caption_scores
from florence2_jax.evaluation.detection import coco_scores, proposal_scores
from florence2_jax.evaluation.grounding import phrase_recall, referring_scores
from florence2_jax.evaluation.java_metrics import meteor, why_no_meteor
from florence2_jax.evaluation.ocr import reading_scores
from florence2_jax.evaluation.regions import category_accuracy
from florence2_jax.evaluation.result_files.captions import read_captions
from florence2_jax.evaluation.result_files.coco_results import read_coco
from florence2_jax.evaluation.result_files.flickr30k import read_phrases
from florence2_jax.evaluation.result_files.icdar import read_words
from florence2_jax.evaluation.result_files.questions import read_answers
from florence2_jax.evaluation.result_files.refcoco import read_mask_areas, read_referring_ious
from florence2_jax.evaluation.result_files.texts import read_texts
from florence2_jax.evaluation.result_files.visual_genome import read_dense_captions
from florence2_jax.evaluation.result_files.voc import read_voc
from florence2_jax.evaluation.scored import mean
from florence2_jax.evaluation.segmentation import mask_scores
from florence2_jax.evaluation.spotting import count_words, spotting_scores
from florence2_jax.evaluation.voc import voc_ap
from florence2_jax.evaluation.vqa import official_vqa_accuracy, textvqa_accuracy
from florence2_jax.typing import UserError

_NO_SPICE = "SPICE: left out; run pycocoevalcap's own, which fetches 400 MB of Stanford CoreNLP"
_TOKENIZER = "tokenizer: this package's, not the Penn Treebank one of Java; see docs/metrics.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The metrics of a pair of files, headline first, over how many examples, and remarks."""

    metrics: dict[str, float]
    num_examples: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultFamily:
    """How files are scored.

    `score` takes the paths of truth and predictions and a split, empty where none was given.
    """

    protocol: str
    examples: str
    truth: str
    predictions: str
    score: Callable[[Path, Path, str], Scores]
    takes_split: bool = False


def _captions(truth: Path, predictions: Path, _: str) -> Scores:
    pairs = read_captions(truth, predictions)
    texts, references = [text for text, _ in pairs], [true for _, true in pairs]
    metrics = caption_scores(texts, references)
    notes = [_TOKENIZER, _NO_SPICE]
    if why := why_no_meteor():
        notes.append(f"METEOR: not computed, {why}")
    else:
        metrics["meteor"] = meteor(texts, references)[0]
    return Scores(metrics=metrics, num_examples=len(pairs), notes=tuple(notes))


def _dense_captions(truth: Path, predictions: Path, _: str) -> Scores:
    found, true, notes = read_dense_captions(truth, predictions)
    if why := why_no_meteor():
        name, similarity = "map_rouge_l", rouge_similarity
        notes += (f"similarity: ROUGE-L in place of METEOR ({why}); no published mAP compares",)
    else:
        name, similarity = "map_meteor", _meteor_of_each
    scores = dense_caption_scores(found, true, similarity)
    metrics = {name: scores["map"], "map_boxes": scores["map_boxes"]}
    return Scores(metrics=metrics, num_examples=len(true), notes=notes)


def _meteor_of_each(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    return meteor(texts, references)[1]


def _boxes(truth: Path, predictions: Path, _: str) -> Scores:
    dataset, detections, num, notes = read_coco(truth, predictions)
    return Scores(metrics=coco_scores(dataset, detections), num_examples=num, notes=notes)


def _masks(truth: Path, predictions: Path, _: str) -> Scores:
    dataset, detections, num, notes = read_coco(truth, predictions, iou_type="segm")
    metrics = coco_scores(dataset, detections, iou_type="segm")
    return Scores(metrics=metrics, num_examples=num, notes=notes)


def _proposals(truth: Path, predictions: Path, _: str) -> Scores:
    dataset, detections, num, notes = read_coco(truth, predictions, with_categories=False)
    return Scores(metrics=proposal_scores(dataset, detections), num_examples=num, notes=notes)


def _voc(truth: Path, predictions: Path, _: str) -> Scores:
    classes, num, notes = read_voc(truth, predictions)
    metrics: dict[str, float] = {}
    for threshold in (0.5, 0.75):
        values = [voc_ap(*pair, iou_threshold=threshold) for pair in classes.values()]
        # A class of difficult boxes only has no average precision, in the official code either.
        values = [value for value in values if not math.isnan(value.every_point)]
        name = f"map{round(100 * threshold)}"
        metrics[name] = mean([value.every_point for value in values])
        metrics[f"{name}_11_point"] = mean([value.eleven_point for value in values])
    for label, pair in classes.items():
        metrics[f"ap50/{label}"] = voc_ap(*pair).every_point
    return Scores(metrics=metrics, num_examples=num, notes=notes)


def _phrases(truth: Path, predictions: Path, split: str) -> Scores:
    phrases, num_sentences = read_phrases(truth, predictions, split)
    notes = (f"{len(phrases)} phrases in {num_sentences} sentences",)
    return Scores(metrics=phrase_recall(phrases), num_examples=len(phrases), notes=notes)


def _referring(truth: Path, predictions: Path, split: str) -> Scores:
    ious = read_referring_ious(truth, predictions, split)
    return Scores(metrics=referring_scores(ious), num_examples=len(ious))


def _referring_masks(truth: Path, predictions: Path, split: str) -> Scores:
    areas = read_mask_areas(truth, predictions, split)
    return Scores(metrics=mask_scores(areas), num_examples=len(areas))


def _vqa(truth: Path, predictions: Path, _: str) -> Scores:
    answered = read_answers(truth, predictions)
    values = [official_vqa_accuracy(one.answer, one.references) for one in answered]
    metrics = {"accuracy": mean(values)}
    for kind in sorted({one.kind for one in answered} - {""}):
        of_kind = [v for v, one in zip(values, answered, strict=True) if one.kind == kind]
        metrics[f"accuracy/{kind}"] = mean(of_kind)
    notes = _other_than_ten([one.references for one in answered])
    return Scores(metrics=metrics, num_examples=len(answered), notes=notes)


def _textvqa(truth: Path, predictions: Path, _: str) -> Scores:
    answered = read_answers(truth, predictions)
    values = [textvqa_accuracy(one.answer, one.references) for one in answered]
    notes = _other_than_ten([one.references for one in answered])
    return Scores(metrics={"accuracy": mean(values)}, num_examples=len(answered), notes=notes)


def _other_than_ten(references: Sequence[Sequence[str]]) -> tuple[str, ...]:
    num = sum(len(texts) != 10 for texts in references)
    why = "the formula is meant for 10 and gives one alone 0"
    return (f"{num} questions have not 10 answers of people: {why}",) if num else ()


def _anls(truth: Path, predictions: Path, _: str) -> Scores:
    answered = read_answers(truth, predictions)
    values = [anls(one.answer, one.references) for one in answered]
    return Scores(metrics={"anls": mean(values)}, num_examples=len(answered))


def _ocr(truth: Path, predictions: Path, _: str) -> Scores:
    pairs, notes = read_words(truth, predictions)
    metrics = spotting_scores([count_words(found, true) for found, true in pairs])
    words = [word.text is not None for _, true in pairs for word in true]
    notes += (f"{sum(words)} words, and {len(words) - sum(words)} not to be cared for",)
    return Scores(metrics=metrics, num_examples=len(pairs), notes=notes)


def _page_text(truth: Path, predictions: Path, _: str) -> Scores:
    pairs = read_texts(truth, predictions)
    metrics = reading_scores([(text, true[0]) for text, true in pairs])
    return Scores(metrics=metrics, num_examples=len(pairs))


def _categories(truth: Path, predictions: Path, _: str) -> Scores:
    pairs = read_texts(truth, predictions)
    metrics = {"accuracy": category_accuracy(pairs)}
    return Scores(metrics=metrics, num_examples=len(pairs))


_TEXTS = '[{"id", "text"}], JSON or JSON lines'
_QUESTIONS = '[{"question_id", "answer"}]'

RESULT_FAMILIES: dict[str, ResultFamily] = {
    "captions": ResultFamily(
        protocol="COCO captions: CIDEr-D, BLEU-1 to 4, ROUGE-L, METEOR where Java is",
        examples="images",
        truth="COCO captions JSON, or {id: [captions]}",
        predictions='[{"image_id", "caption"}], or {id: [caption]}',
        score=_captions,
    ),
    "dense_captions": ResultFamily(
        protocol="Visual Genome dense captions: mAP over IoU 0.3 to 0.7 and METEOR 0 to 0.25",
        examples="images",
        truth="region_descriptions.json",
        predictions='[{"image_id", "bbox", "caption", "score"}]',
        score=_dense_captions,
    ),
    "region_to_text": ResultFamily(
        protocol="captions of given regions, as captions",
        examples="regions",
        truth='{"annotations": [{"region_id", "caption"}]}, or {id: [captions]}',
        predictions='[{"region_id", "caption"}]',
        score=_captions,
    ),
    "region_to_category": ResultFamily(
        protocol="categories of given regions: accuracy, letter by letter but for case",
        examples="regions",
        truth=_TEXTS,
        predictions=_TEXTS,
        score=_categories,
    ),
    "detection": ResultFamily(
        protocol="COCO box AP and AR",
        examples="images",
        truth="COCO instances JSON",
        predictions='[{"image_id", "category_id", "bbox", "score"}]',
        score=_boxes,
    ),
    "instance_segmentation": ResultFamily(
        protocol="COCO mask AP and AR",
        examples="images",
        truth="COCO instances JSON",
        predictions='[{"image_id", "category_id", "segmentation", "score"}]',
        score=_masks,
    ),
    "proposals": ResultFamily(
        protocol="COCO region proposals: AR at 10, 100, 1000 boxes, categories not looked at",
        examples="images",
        truth="COCO instances JSON",
        predictions='[{"image_id", "bbox", "score"}]',
        score=_proposals,
    ),
    "voc_detection": ResultFamily(
        protocol="Pascal VOC AP, every point (2010) and 11 points (2007), at IoU 0.5 and 0.75",
        examples="images",
        truth="folder of NAME.txt (class x y w h) or NAME.xml",
        predictions="folder of NAME.txt (class score x y w h)",
        score=_voc,
    ),
    "phrase_grounding": ResultFamily(
        protocol="Flickr30k Entities: R@1, 5, 10 and upper bound, any-box and merged-box",
        examples="phrases",
        truth="folder with Sentences/, Annotations/ and the lists of splits",
        predictions='[{"image_id", "sentence_id", "boxes"}], as MDETR writes it',
        score=_phrases,
        takes_split=True,
    ),
    "referring": ResultFamily(
        protocol="RefCOCO/+/g comprehension: share of boxes with IoU >= 0.5",
        examples="sentences",
        truth='refs(BY).p beside instances.json, or [{"sent_id", "bbox"}]',
        predictions='[{"sent_id", "bbox"}], JSON or JSON lines',
        score=_referring,
        takes_split=True,
    ),
    "referring_segmentation": ResultFamily(
        protocol="RefCOCO/+/g segmentation: mIoU and oIoU",
        examples="sentences",
        truth='refs(BY).p beside instances.json, or [{"sent_id", "width", "height", '
        '"segmentation"}]',
        predictions='[{"sent_id", "segmentation"}], JSON or JSON lines',
        score=_referring_masks,
        takes_split=True,
    ),
    "vqa": ResultFamily(
        protocol="VQA v2 accuracy, the quirks of the official code included",
        examples="questions",
        truth='VQA annotations JSON: {"annotations": [{"question_id", "answers"}]}',
        predictions=_QUESTIONS,
        score=_vqa,
    ),
    "textvqa": ResultFamily(
        protocol="TextVQA accuracy: VQA's formula, other normal form of answers",
        examples="questions",
        truth='{"data": [{"question_id", "answers"}]}',
        predictions=_QUESTIONS,
        score=_textvqa,
    ),
    "anls": ResultFamily(
        protocol="DocVQA, InfographicVQA, ST-VQA: ANLS at 0.5",
        examples="questions",
        truth='{"data": [{"questionId", "answers"}]}',
        predictions='[{"questionId", "answer"}]',
        score=_anls,
    ),
    "ocr": ResultFamily(
        protocol="ICDAR 2015 words: IoU > 0.5 and equal text; places alone; word F1",
        examples="images",
        truth="zip or folder of gt_NAME.txt (x1,y1,...,x4,y4,text; ### not cared for)",
        predictions="zip or folder of res_NAME.txt",
        score=_ocr,
    ),
    "page_text": ResultFamily(
        protocol="all writing of a page: word F1 and character error rate",
        examples="pages",
        truth=_TEXTS,
        predictions=_TEXTS,
        score=_page_text,
    ),
}


def score_files(family: str, truth: Path, predictions: Path, *, split: str = "") -> Scores:
    """Scores a file of predictions against a file of truth.

    Args:
        split: of truths that hold several (Flickr30k Entities, RefCOCO).

    Raises:
        UserError: if the family is unknown, takes no split, or a file is not as its reader says.
    """
    if family not in RESULT_FAMILIES:
        raise UserError(f"family {family!r} is unknown; one of {', '.join(RESULT_FAMILIES)}")
    row = RESULT_FAMILIES[family]
    if split and not row.takes_split:
        raise UserError(f"--split {split}: {family} scores all of the truth's file; cut it instead")
    scores = row.score(truth, predictions, split)
    if not scores.num_examples:
        raise UserError(f"{truth}: no {row.examples} in it to score; is it the right file?")
    return scores

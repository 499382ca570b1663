# SPDX-License-Identifier: Apache-2.0
"""Questions about images: VQA v2, GQA and TextVQA, told apart by what is in their files.

Read: every .json in the folder and the folders within it whose name speaks of questions,
annotations or TextVQA; or one file. All questions of an image go into one record. Images are found
by name in the folder or in the option `images`:

- VQA v2: `questions` in one file and `annotations` (the answers) in another, joined by the number
  of the question; images are `COCO_train2014_000000458752.jpg`, ids "train2014/" and that name.
- GQA: an object of questions by their numbers; images are `n578564.jpg`, ids "gqa/n578564.jpg".
  The answer is the short one, which is what is scored; full answers are not read.
- TextVQA: a list `data`; images are `IMAGE_ID.jpg`, ids "textvqa/IMAGE_ID.jpg".

Of the answers of several people all are kept, as often as they were given, for their number decides
the score: that of `multiple_choice_answer` first, then by how many gave it, then as listed.
Questions without answers, as in test sets, are set aside.

The split is the train, val or test of the file's own words (`data_subtype`, `set_name`), or of its
name, or its folder's; without any it is train. An image that several splits ask about goes to test
before val before train, with the questions of that split only. Of a question that several files
list, one with an answer is read; the others are set aside.
Sources: VQA v2 (arXiv:1612.00837), GQA (arXiv:1902.09506), TextVQA (arXiv:1904.08920).
"""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florence2_jax.records.checks import is_safe_name
from florence2_jax.records.importers.annotated import AnnotatedImage, make_record
from florence2_jax.records.importers.image_files import ImageFiles, find_images
from florence2_jax.records.importers.json_files import Id, as_id, as_text, field, read_json, shown
from florence2_jax.records.importers.layout import note_unmentioned
from florence2_jax.records.importers.places import first_bytes
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.writing import Plan
from florence2_jax.typing import UserError

SPLITS = ("test", "val", "train")
"""Most guarded first."""

_READ = re.compile(r"(?!question_answers).*(question|annotation|textvqa).*\.json", re.IGNORECASE)
_DETECTED = re.compile(r"(?!question_answers).*(question|textvqa).*\.json", re.IGNORECASE)
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)")
_COCO_SUBSETS = ("train2014", "val2014", "test2015")


def detect(source: Path) -> bool:
    """Whether a file's name speaks of questions, and it begins with an object."""
    try:
        files = [source] if source.is_file() else (*source.glob("*.json"), *source.glob("*/*.json"))
        return any(_DETECTED.fullmatch(p.name) and _begins_with_object(p) for p in files)
    except OSError:
        return False


def plan(source: Path, *, images: Path | None = None) -> Plan:
    """Lists questions by image. Raises UserError if there is none with an answer."""
    ledger, digest = Ledger(), hashlib.sha256()
    listing = _Listing(ledger=ledger, images=find_images(source, images))
    for path in [source] if source.is_file() else sorted(source.rglob("*.json")):
        if path != source and not _READ.fullmatch(path.name):
            ledger.note("file", f"{path.name} not read: its name speaks of no questions")
            continue
        listing.add_file(path, read_json(path, digest=digest))
    units = listing.by_split()
    if not units:
        raise UserError(
            f"{source}: no question with an answer in {listing.num_files} files of questions; give "
            "the folder of VQA v2, GQA or TextVQA, of VQA v2 with its annotations"
        )
    note_unmentioned((Path(str(u.image)) for some in units.values() for u in some), ledger)
    job = {"format": "vqa", "sha256": digest.hexdigest()}
    return Plan(units=units, make=make_record, job=job, ledger=ledger)


def ranked(answers: Sequence[str], first: str | None = None) -> list[str]:
    """The answers with their repeats: those equal to `first`, then by frequency, then as given.

    If nobody gave `first`, it is put before them.
    """
    counts = Counter(answers)
    places = {answer: place for place, answer in reversed(list(enumerate(answers)))}
    in_order = sorted(answers, key=lambda a: (a != first, -counts[a], places[a]))
    return in_order if first is None or first in counts else [first, *in_order]


def _begins_with_object(path: Path) -> bool:
    return first_bytes(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def _split(*hints: Any) -> str:
    """The split that the first hint to name one names."""
    for hint in hints:
        if isinstance(hint, str) and (match := _SPLIT.search(hint.lower())):
            return match[1]
    return "train"


def _is_gqa(content: Any) -> bool:
    return isinstance(content, dict) and any(field(v, "question") for v in content.values())


def _texts(answers: Any) -> list[Any]:
    """Answers as VQA v2 and TextVQA list them: texts, or objects that hold one."""
    listed = answers if isinstance(answers, list) else []
    return [row.get("answer") if isinstance(row, dict) else row for row in listed]


@dataclasses.dataclass(kw_only=True, slots=True)
class _Asked:
    """A question: of which data set, its number there, the file and split it is in, its image."""

    data: str
    number: Id | None
    file: str
    split: str
    id: str
    name: str
    question: Any
    answers: Sequence[Any]
    origin: str = ""


@dataclasses.dataclass(kw_only=True)
class _Listing:
    """All questions, and the answers of VQA v2 by the number of their question.

    `aside` counts by kind, reason and file what is set aside in masses: with GQA whole, most
    questions are in two files.
    """

    ledger: Ledger
    images: ImageFiles
    num_files: int = 0
    asked: list[_Asked] = dataclasses.field(default_factory=list)
    answers: dict[Id, tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    aside: Counter[tuple[str, str, str]] = dataclasses.field(default_factory=Counter)

    def add_file(self, path: Path, content: Any) -> None:
        """Adds the questions, or the answers, of one file."""
        lists = {key: field(content, key) for key in ("annotations", "questions", "data")}
        lists = {key: value for key, value in lists.items() if isinstance(value, list)}
        if not lists and not _is_gqa(content):
            self.ledger.note("file", f"{path.name} not read: neither questions nor answers in it")
            return
        self.num_files += 1
        if "annotations" in lists:
            self._add_answers(lists["annotations"], path.name)
        if "questions" in lists:
            self._add_vqa_v2(lists["questions"], content.get("data_subtype"), path)
        elif "data" in lists:
            self._add_textvqa(lists["data"], content.get("dataset_type"), path)
        elif not lists:
            self._add_gqa(content, path)

    def _add_answers(self, rows: list[Any], file: str) -> None:
        for row in rows:
            key = as_id(field(row, "question_id"))
            if key is None:
                self._set_aside("answers without the number of a question", file, row)
            elif key not in self.answers:
                self.answers[key] = file, row
            else:
                is_same = self.answers[key][1] == row
                why = "answers listed twice" if is_same else "answers that differ from others given"
                self._set_aside(why, file, row)

    def _add_vqa_v2(self, rows: list[Any], subtype: Any, path: Path) -> None:
        split = _split(subtype, path.stem, path.parent.name)
        told = [
            s for s in _COCO_SUBSETS if s in f"{subtype} {path.name}".replace("test-dev", "test")
        ]
        for row in rows:
            image = as_id(field(row, "image_id"))
            if not isinstance(image, int) or not 0 <= image < 10**12:
                self._set_aside("no number of an image", path.name, row)
                continue
            names = {s: f"COCO_{s}_{image:012d}.jpg" for s in told or _COCO_SUBSETS}
            here = next((s for s, name in names.items() if name in self.images), next(iter(names)))
            self._add(row, "vqa_v2", path, split, here, names[here])

    def _add_textvqa(self, rows: list[Any], set_name: Any, path: Path) -> None:
        for row in rows:
            split = _split(field(row, "set_name"), set_name, path.stem, path.parent.name)
            if name := self._image_name(row, "image_id", path):
                answers = self._ranked(_texts(row.get("answers")))
                origin = as_text(row.get("flickr_original_url"))
                origin = origin or as_text(row.get("flickr_300k_url"))
                self._add(row, "textvqa", path, split, "textvqa", name, answers, origin)

    def _add_gqa(self, content: dict[str, Any], path: Path) -> None:
        split = _split(path.stem, path.parent.name)
        for number, row in content.items():
            if name := self._image_name(row, "imageId", path):
                answers = [] if row.get("answer") is None else [row["answer"]]
                row = row | {"question_id": number}
                self._add(row, "gqa", path, split, "gqa", name, answers)

    def _image_name(self, row: Any, key: str, path: Path) -> str:
        """The file name of an image by its id; empty after setting the question aside."""
        image = as_id(field(row, key))
        if image is None or not is_safe_name(str(image)) or {"/", "\\"} & set(str(image)):
            self._set_aside("no id of an image", path.name, row)
            return ""
        return f"{image}.jpg"

    def _add(
        self,
        row: dict[str, Any],
        data: str,
        path: Path,
        split: str,
        folder: str,
        name: str,
        answers: Sequence[Any] = (),
        origin: str = "",
    ) -> None:
        self.asked.append(
            _Asked(
                data=data,
                number=as_id(row.get("question_id")),
                file=path.name,
                split=split,
                id=f"{folder}/{name}",
                name=name,
                question=row.get("question"),
                answers=answers,
                origin=origin,
            )
        )

    def _ranked(self, answers: list[Any], first: Any = None) -> Sequence[Any]:
        """Answers as `ranked` has them; as they are where none is a text, for mending to tell."""
        texts = [answer.strip() for answer in answers if as_text(answer)]
        if num := len(answers) - len(texts):
            self.ledger.note("question", "answers left out: empty, or not a text", num)
        first = first.strip() if as_text(first) else None
        return ranked(texts, first) if texts or first else answers

    def by_split(self) -> dict[str, list[AnnotatedImage]]:
        """The images of each split with their questions; settles all other questions."""
        self._join_answers()
        by_image: dict[str, list[_Asked]] = {}
        for one in self.asked:
            by_image.setdefault(one.id, []).append(one)
        # Before what is listed twice is dropped: any listing may hold an image out.
        splits = {
            id_: min((one.split for one in questions), key=SPLITS.index)
            for id_, questions in by_image.items()
        }
        dropped = self._listed_again()
        units: dict[str, list[AnnotatedImage]] = {}
        for id_, questions in by_image.items():
            kept = [
                one
                for one in questions
                if id(one) not in dropped and self._is_kept(one, splits[id_])
            ]
            if kept:
                units.setdefault(splits[id_], []).append(self._unit(kept))
            else:
                self.aside["image", "no question with an answer", questions[0].file] += 1
        for (kind, why, file), num in self.aside.items():
            self.ledger.read(kind, num)
            self.ledger.set_aside(kind, why, where=file, num=num)
        return {split: units[split] for split in reversed(SPLITS) if split in units}

    def _join_answers(self) -> None:
        used = set()
        for one in self.asked:
            if one.data != "vqa_v2" or one.number not in self.answers:
                continue
            assert one.number is not None
            used.add(one.number)
            row = self.answers[one.number][1]
            image = as_id(row.get("image_id"))
            if image is None or f"_{image:>012}." in one.name:
                one.answers = self._ranked(
                    _texts(row.get("answers")), row.get("multiple_choice_answer")
                )
            else:
                self.ledger.note("question", "answers of another image, not taken")
        for key, (file, _) in self.answers.items():
            if key not in used:
                self.aside["question", "answers to a question that is not listed", file] += 1

    def _listed_again(self) -> set[int]:
        """The identities of questions to leave out, since another of their number is taken."""
        taken: dict[tuple[str, Id], _Asked] = {}
        dropped = set()
        for one in sorted(self.asked, key=lambda one: not one.answers):
            if one.number is None:
                continue
            first = taken.setdefault((one.data, one.number), one)
            if first is one:
                continue
            is_same = (first.question, first.id) == (one.question, one.id)
            why = "listed twice" if is_same else "its number is that of another question"
            self.aside["question", why, one.file] += 1
            dropped.add(id(one))
            if is_same:
                first.split = min(first.split, one.split, key=SPLITS.index)
        return dropped

    def _is_kept(self, one: _Asked, split: str) -> bool:
        if not one.answers:
            self.aside["question", "without answers, as in test sets", one.file] += 1
        elif one.split != split:
            why = f"of {one.split}, but its image is held out for {split}"
            self.aside["question", why, one.file] += 1
        else:
            return True
        return False

    def _unit(self, questions: Sequence[_Asked]) -> AnnotatedImage:
        origin = next((one.origin for one in questions if one.origin), "")
        first = questions[0]
        unit = AnnotatedImage(id=first.id, image=self.images[first.name], origin=origin)
        unit.questions = [(one.question, one.answers) for one in questions]
        return unit

    def _set_aside(self, why: str, file: str, row: Any) -> None:
        self.ledger.read("question")
        self.ledger.set_aside("question", why, where=file, value=shown(row))

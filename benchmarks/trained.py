# SPDX-License-Identifier: Apache-2.0
"""A trained model, here and as an exported folder in transformers: same tokens, text and boxes?

    python benchmarks/trained.py --model runs/scenes --records runs/scenes-records

Asks both the same questions about the same images (`--pairs` of them, evenly over the tasks, six at
a time, of mixed tasks, so that prompts are padded), greedily and with 3 beams, and counts answers
whose token ids, decoded texts and post-processed boxes are equal.

Then asks once more under the grammar of each task: how many answers parse, whether those that
parsed without it stayed as they were, and how much longer decoding took. The same for random
weights. The image size of the model must be that of the records, so that no resizing differs.
"""

import argparse
import dataclasses
import json
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from florence2_jax.conversion.export import convert
from florence2_jax.data.examples import Example, examples_of
from florence2_jax.data.transforms import decode
from florence2_jax.inference.predictor import Predictor
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.answers import RegionsAnswer, parse_answer
from florence2_jax.tasks.compatible import released_dict
from florence2_jax.tasks.registry import TASKS, Task
from florence2_jax.text.tokenizer import PAD_ID
from florence2_jax.training.state import init_params

BATCH, REPEATS = 6, 5
_CONTROL = re.compile("<s>|</s>|<pad>")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One image and one question."""

    image: Image.Image
    example: Example

    @property
    def task(self) -> Task:
        return self.example.task


def main() -> None:
    args = _arguments()
    pairs = list(_pairs(RecordStore(args.records, args.split), args.pairs))
    report: dict[str, Any] = {"pairs": len(pairs), "tasks": len({p.task.token for p in pairs})}
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "hf"
        convert(args.model, exported, "hf")
        processor = AutoProcessor.from_pretrained(exported)
        theirs = Florence2ForConditionalGeneration.from_pretrained(exported).eval()
        for num_beams in (1, 3):
            predictor = _predictor(args.model, num_beams, args.new_tokens)
            report[f"beams {num_beams}"] = _compare(predictor, theirs, processor, pairs)
    for name, seed in (("trained", None), ("random", 0)):
        report[f"grammar, {name}"] = _grammar(args, pairs, seed)
    text = json.dumps(report, indent=1)
    sys.stdout.write(text + "\n")
    if args.json:
        args.json.write_text(text + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="workdir of a run")
    parser.add_argument("--records", type=Path, required=True, help="store to ask about")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--pairs", type=int, default=255, help="(image, task) pairs")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _predictor(model: Path, num_beams: int, new_tokens: int, **options: Any) -> Predictor:
    return Predictor.load(
        model, dtype="float32", num_beams=num_beams, max_new_tokens=new_tokens, **options
    )


def _pairs(store: RecordStore, number: int) -> Iterator[Pair]:
    """Evenly over the tasks, each time of the next record that feeds the task."""
    rest = {token: iter(range(len(store))) for token in TASKS}
    for i in range(number):
        task = list(TASKS.values())[i % len(TASKS)]
        for index in rest[task.token]:
            record = store[index]
            if examples := examples_of(record, task):
                yield Pair(decode(record.image), examples[0])
                break


def _batches(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Pairs of mixed tasks, neighbours in length of prompt: padded, but not to several shapes."""
    ordered = sorted(pairs, key=lambda pair: len(pair.example.prompt))
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


def _ask_ours(predictor: Predictor, batch: Sequence[Pair]) -> list[np.ndarray]:
    rows = [batch[min(i, len(batch) - 1)] for i in range(BATCH)]  # One shape for all.
    pixels = np.stack([np.asarray(pair.image) for pair in rows])
    ids, _ = predictor.generate(pixels, [[(p.task, p.example.prompt)] for p in rows])
    return [_without_padding(row) for row in ids[: len(batch), 0]]


def _ask_theirs(model: Any, processor: Any, predictor: Predictor, batch: Sequence[Pair]):
    texts = [_as_asked(pair) for pair in batch]
    inputs = processor(
        text=texts, images=[pair.image for pair in batch], return_tensors="pt", padding=True
    )
    options = predictor.generation
    with torch.inference_mode():
        out = model.generate(
            **inputs, num_beams=options.num_beams, max_new_tokens=options.max_new_tokens
        )
    return [_without_padding(row[1:]) for row in out.numpy()]


def _as_asked(pair: Pair) -> str:
    """A released task by its token, as people ask; ours by the sentence."""
    if not pair.task.is_released:
        return pair.example.prompt
    return pair.task.token + pair.example.text_input


def _without_padding(ids: np.ndarray) -> np.ndarray:
    return ids[: len(ids) - int((ids[::-1] != PAD_ID).argmax())]


def _compare(predictor: Predictor, model: Any, processor: Any, pairs: Sequence[Pair]) -> dict:
    same = {"ids": 0, "text": 0, "boxes": 0, "with boxes": 0}
    differing = []
    for batch in _batches(pairs):
        ours = _ask_ours(predictor, batch)
        theirs = _ask_theirs(model, processor, predictor, batch)
        for pair, a, b in zip(batch, ours, theirs, strict=True):
            if np.array_equal(a, b):
                same["ids"] += 1
            else:
                differing.append({"task": pair.task.token, "ours": a.tolist(), "hf": b.tolist()})
            raw, text = predictor.tokenizer.decode(a.tolist()), _decode(processor, b)
            same["text"] += raw == _CONTROL.sub("", text)
            if not pair.task.is_released:
                continue
            same["with boxes"] += 1
            parsed = processor.post_process_generation(
                text, task=pair.task.token, image_size=pair.image.size
            )
            answer = parse_answer(pair.task, raw, pair.image.size, compatible=True)
            same["boxes"] += parsed[pair.task.token] == released_dict(pair.task, answer)
    return same | {"differing": differing}


def _decode(processor: Any, ids: np.ndarray) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return processor.batch_decode([ids.tolist()], skip_special_tokens=False)[0]


def _grammar(args: argparse.Namespace, pairs: Sequence[Pair], seed: int | None) -> dict:
    """What the grammar changes, greedily; seconds are medians of calls that take turns."""
    batches = list(_batches(pairs))
    predictors, answers, seconds = {}, {}, {False: [], True: []}
    for held in (False, True):
        predictors[held] = _predictor(
            args.model, 1, args.new_tokens, is_constrained=held, no_repeat_ngram_size=0
        )
        if seed is not None:
            predictors[held].params = init_params(predictors[held].config, jax.random.key(seed))
        rows = [ids for batch in batches for ids in _ask_ours(predictors[held], batch)]
        answers[held] = [predictors[held].tokenizer.decode(ids.tolist()) for ids in rows]
    for _ in range(REPEATS):
        for held, predictor in predictors.items():
            start = time.perf_counter()
            for batch in batches:
                _ask_ours(predictor, batch)
            seconds[held].append(time.perf_counter() - start)
    asked = [pair for batch in batches for pair in batch]
    parses = {
        held: [_parses(pair, raw) for pair, raw in zip(asked, raws, strict=True)]
        for held, raws in answers.items()
    }
    same = [a == b for a, b in zip(answers[False], answers[True], strict=True)]
    without, held = (statistics.median(seconds[held]) for held in (False, True))
    return {
        "parse without": sum(parses[False]),
        "parse with": sum(parses[True]),
        "parseable and unchanged": sum(a and b for a, b in zip(parses[False], same, strict=True)),
        "s without": without,
        "s with": held,
        "cost": held / without - 1,
    }


def _parses(pair: Pair, raw: str) -> bool:
    answer = parse_answer(pair.task, raw, pair.image.size)
    is_regions = isinstance(answer, RegionsAnswer)
    return not answer.unparsed and (is_regions or pair.task.grammar in ("text", "region_text"))


if __name__ == "__main__":
    main()

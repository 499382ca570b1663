# SPDX-License-Identifier: Apache-2.0
"""Questions per second of an evaluation, here and with transformers' generate, in one process.

    python benchmarks/evaluate.py --model runs/scenes --records runs/scenes-records
    python benchmarks/evaluate.py --model runs/scenes --records runs/scenes-records --random base \
        --image-size 384 --max-records 8 --batch-size 8 --new-tokens 24

Both sides answer the same questions about the same images (read from the same store), greedily,
with the same weights, and score the answers with the same metrics; the figures must agree.
transformers gets its own processor and its own `generate`, one question a row in padded batches of
`--batch-size` questions, ordered by task, as a careful user would write it; we get `evaluate`,
which looks at an image once for all its questions. Sides take turns; compilation is outside, and
told.

With `--random` the weights are random and of another size, and both write `--new-tokens` tokens
exactly: for the time of a real model's evaluation where no weights are at hand.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import torch
import transformers
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from florence2_jax.conversion.export import save_folder
from florence2_jax.conversion.load import Pretrained
from florence2_jax.data.transforms import decode
from florence2_jax.evaluation.families import score_task
from florence2_jax.evaluation.questions import Asking, Question
from florence2_jax.evaluation.runner import evaluate
from florence2_jax.evaluation.scored import Scored
from florence2_jax.inference.predictor import Predictor
from florence2_jax.models.config import Florence2Config
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.answers import parse_answer
from florence2_jax.tasks.registry import get_task
from florence2_jax.training.state import init_params

TASKS = (
    *("caption", "detailed_caption", "od", "dense_region_caption", "ocr", "vqa"),
    *("caption_to_phrase_grounding", "region_to_category"),
)


def main() -> None:
    args = _arguments()
    predictor = _predictor(args)
    store = RecordStore(args.records, args.split)
    asking = Asking(tasks=tuple(map(get_task, args.tasks)), per_record=args.per_record)
    theirs = _Theirs(predictor, args)

    def ours() -> tuple[int, dict[str, float]]:
        found = evaluate(
            predictor,
            store,
            asking,
            max_records=args.max_records,
            with_blind=False,
            batch_size=max(1, args.batch_size // 2),
            num_resamples=0,
        )
        assert found is not None  # One process.
        return len(found.answered), {r.task.name: r.metrics[r.headline] for r in found.results}

    sides = {"ours": ours, "transformers": lambda: theirs.evaluate(store, asking)}
    first, seconds, answers = {}, {name: [] for name in sides}, {}
    for turn in range(args.turns + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            answers[name] = side()
            took = time.perf_counter() - start
            first.setdefault(name, took)
            if turn:
                seconds[name].append(took)
    report = _report(args, predictor, first, seconds, answers)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a workdir or folder")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--max-records", type=int, default=64)
    parser.add_argument("--per-record", type=int, default=1, help="questions of a task")
    parser.add_argument("--batch-size", type=int, default=16, help="questions a batch, theirs")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--random", help="random weights of this variant: base, large")
    parser.add_argument("--image-size", type=int, default=384, help="with --random")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _predictor(args: argparse.Namespace) -> Predictor:
    options: dict[str, Any] = dict(num_beams=1, max_new_tokens=args.new_tokens)
    options |= dict(no_repeat_ngram_size=0, pool_locations=False)  # They cannot pool.
    if not args.random:
        return Predictor.load(args.model, dtype="float32", **options)
    options["min_new_tokens"] = args.new_tokens - 1
    given = Predictor.load(args.model, dtype="float32", **options)
    config = Florence2Config.create(
        args.random,
        image_size=args.image_size,
        dtype="float32",
        text=dict(vocab_size=given.config.text.vocab_size),
    )
    params = init_params(config, jax.random.key(0))
    return Predictor(config, params, given.tokenizer, generation=given.generation)


class _Theirs:
    """The same model as an exported folder, opened and asked as transformers' users do."""

    def __init__(self, predictor: Predictor, args: argparse.Namespace):
        self.predictor, self.args = predictor, args
        model = Pretrained(predictor.config, predictor.params, predictor.tokenizer, {})
        with tempfile.TemporaryDirectory() as place:
            save_folder(model, Path(place), "hf", {"name": "benchmark"})
            self.processor = AutoProcessor.from_pretrained(place)
            self.model: Any = Florence2ForConditionalGeneration.from_pretrained(place)
            self.model.eval()

    def evaluate(self, store: RecordStore, asking: Asking) -> tuple[int, dict[str, float]]:
        """Number of questions and the headline of each task."""
        asked = [
            (record, question)
            for record in store[: self.args.max_records]
            for question in asking.questions(record)[0]
        ]
        asked.sort(key=lambda pair: pair[1].asked.token)
        scored: dict[str, list[Scored]] = {}
        for batch in _batches(asked, self.args.batch_size):
            for (record, question), text in zip(batch, self._ask(batch), strict=True):
                one = Scored(
                    example=question.example,
                    answer=parse_answer(question.asked, text, record.size),
                    size=record.size,
                    image_id=record.id,
                )
                scored.setdefault(question.example.task.name, []).append(one)
        metrics = {name: score_task(get_task(name), some) for name, some in scored.items()}
        return len(asked), {name: next(iter(some.values())) for name, some in metrics.items()}

    def _ask(self, batch: Sequence[tuple[Record, Question]]) -> list[str]:
        inputs = self.processor(
            text=[question.prompt for _, question in batch],
            images=[decode(record.image) for record, _ in batch],
            return_tensors="pt",
            padding=True,
        )
        options = self.predictor.generation
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ids = self.model.generate(
                **inputs,
                num_beams=1,
                max_new_tokens=options.max_new_tokens,
                min_new_tokens=options.min_new_tokens,
                no_repeat_ngram_size=0,
            )
            return self.processor.batch_decode(ids, skip_special_tokens=False)


def _batches(
    asked: Sequence[tuple[Record, Question]], size: int
) -> Iterator[Sequence[tuple[Record, Question]]]:
    for start in range(0, len(asked), size):
        yield asked[start : start + size]


def _report(
    args: argparse.Namespace, predictor: Predictor, first: Any, seconds: Any, answers: Any
) -> dict[str, Any]:
    count = answers["ours"][0]
    assert count == answers["transformers"][0], answers
    rates = {name: count / statistics.median(times) for name, times in seconds.items()}
    both = {
        task: {name: round(found[1][task], 4) for name, found in answers.items()}
        for task in answers["ours"][1]
    }
    threads = f"{torch.get_num_threads()} threads"
    return {
        "model": args.random or args.model.name,
        "image_size": predictor.config.image_size,
        "questions": count,
        "records": args.max_records,
        "questions_per_s": rates,
        "ratio": rates["ours"] / rates["transformers"],
        "first_s": first,
        "metrics": both,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {jax.default_backend()}, {threads}",
    }


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Images per second of the input pipeline, beside transformers' processor and beside the limit.

    python benchmarks/input.py --images ~/coco/val2017 --json benchmarks/input.json
    python benchmarks/input.py --records /data/fld --images-per-second-per-host 600
    python benchmarks/input.py --records SCENES --quick

Everything reads the same images, encoded, in the same run: those of a store, or a store made on the
spot of photos, each with drawn-up captions, boxes, outlines and words. Compared are

- the limit: processes that open an image with PIL, make it RGB and resize it as the exact path
  does, nothing else, not even an array;
- the loader as a run uses it: records read, `--prompts` questions drawn for each image, their
  targets written and tokenised, batches handed over by worker processes; or, in threads of one
  process, which need not hand them over but share Python's lock;
- torch's DataLoader with transformers' Florence2Processor in its workers: images decoded, resized
  and normalised, one prompt and one target per image, ready-made as text, tokenised and padded.

Workers are started and warmed up before the clock. Contenders take turns, `--rounds` times over,
and the medians are compared. Milliseconds of the processor are those of all processes together:
they hardly change with what else the machine does, unlike images per second by the clock.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import annotated_photos
import grain
import numpy as np
from PIL import Image, features

from florence2_jax.data.examples import target_of
from florence2_jax.data.loading import BatchSpec, LoadExamples
from florence2_jax.data.mixture import draw_examples, parse_weights
from florence2_jax.data.pipeline import iterate, make_dataset
from florence2_jax.data.texts import store_texts
from florence2_jax.data.transforms import decode, decode_scaled, resize
from florence2_jax.records.schema import Record
from florence2_jax.records.store import RecordStore
from florence2_jax.tasks.targets import Budget
from florence2_jax.text.hugging_face import save_hugging_face
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.typing import Size

WEIGHTS = parse_weights({"all": 1.0, "vqa": 0.0, "referring_expression_comprehension": 0.0})
SAMPLE = 256  # Records that the limit and transformers go round; more would only cost memory.
LIMIT, THEIRS = "bare decode and resize", "DataLoader with Florence2Processor"
OURS, IN_THREADS = "the loader", "the loader in threads"

Pair: TypeAlias = tuple[bytes, str, str]
"""An encoded image, a prompt and a target."""

Contender: TypeAlias = Callable[[], contextlib.AbstractContextManager[Iterator[Any]]]
"""Starts workers, and gives their batches without end."""


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="input") as name:
        store = _store(args, Path(name) / "store")
        if args.tokenizer:
            tokenizer = Tokenizer.load(args.tokenizer)
        else:
            texts = store_texts(store, max_records=SAMPLE)
            tokenizer = Tokenizer.train(texts, vocab_size=4000)
        report = {"machine": _machine(), "store": _about(store), "rows": []}
        print(json.dumps(report["machine"] | report["store"]))
        for side_px in args.sizes:
            row = _row(args, store, tokenizer, (side_px, side_px), Path(name))
            report["rows"].append(row)
            _show(row)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder of JPEGs, searched through")
    source.add_argument("--records", type=Path, help="store of records")
    parser.add_argument("--split", default="train", help="of --records")
    parser.add_argument("--number", type=int, default=SAMPLE, help="records made of --images")
    parser.add_argument("--tokenizer", type=Path, help="its folder; else one is trained")
    parser.add_argument("--sizes", type=int, nargs="+", default=[384, 768], help="sides in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--prompts", type=int, default=4, help="per image, in our batches")
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--target-length", type=int, default=256)
    parser.add_argument("--pack-length", type=int, default=0)
    parser.add_argument(
        "--scaled", action="store_true", help="our loader decodes large JPEGs small"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of each of our workers")
    parser.add_argument("--seconds", type=float, default=10.0, help="by the clock, per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images-per-second-per-host", type=float, help="what its chips consume")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.batch, args.number, args.seconds, args.rounds = [64], 4, 16, 0.2, 1
    return args


def _store(args: argparse.Namespace, folder: Path) -> RecordStore:
    if args.records:
        return RecordStore(args.records, args.split)
    photos = sorted(path for path in args.images.rglob("*.jp*g") if path.is_file())
    if not photos:
        sys.exit(f"{args.images}: no JPEG in it; give a folder of photos")
    return annotated_photos.write(folder, photos, args.number)


# What is measured


def _row(
    args: argparse.Namespace, store: RecordStore, tokenizer: Tokenizer, size: Size, folder: Path
) -> dict[str, Any]:
    spec = BatchSpec(
        batch_size=args.batch,
        num_prompts=args.prompts,
        prompt_length=args.prompt_length,
        target_length=args.target_length,
        pack_length=args.pack_length,
        image_size=size,
        weights=WEIGHTS,
        scaled_decode=args.scaled,
    )
    sample = range(0, len(store), max(1, len(store) // SAMPLE))
    pairs = [pair for i in sample if (pair := _pair(store[i], tokenizer, spec, seed=i))]
    images = [image for image, _, _ in pairs]
    processor_folder = folder / f"processor{size[0]}"
    _save_processor(tokenizer, size, processor_folder)
    contenders: dict[str, Contender] = {}
    for workers in args.workers:
        contenders[f"{LIMIT}, {workers}"] = functools.partial(_bare, images, spec, workers)
        contenders[f"{OURS}, {workers}"] = functools.partial(
            _ours, store, tokenizer, spec, workers, args.threads
        )
        contenders[f"{IN_THREADS}, {workers}"] = functools.partial(
            _ours, store, tokenizer, spec, 0, workers
        )
        contenders[f"{THEIRS}, {workers}"] = functools.partial(
            _theirs, pairs, processor_folder, spec, workers
        )
    rounds = [
        {name: _measure(start, spec.batch_size, args) for name, start in contenders.items()}
        for _ in range(args.rounds)
    ]
    whole = {
        name: {key: statistics.median(r[name][key] for r in rounds) for key in rounds[0][name]}
        for name in contenders
    }
    row = {
        "size_px": size[0],
        "batch": spec.batch_size,
        "num_prompts": spec.num_prompts,
        "pack_length": spec.pack_length,
        "scaled_decode": spec.scaled_decode,
        "parts_ms": _parts(store, tokenizer, spec, sample, args.rounds),
        "scaled": _scaled_decoding(images, size),
        "whole": whole,
        "rounds": rounds,
    }
    return row | {"conclusions": _conclusions(args, whole)}


def _conclusions(args: argparse.Namespace, whole: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Ratios at the most workers, by the clock and by time of the processor."""
    most, found = max(args.workers), {}
    limit, theirs = whole[f"{LIMIT}, {most}"], whole[f"{THEIRS}, {most}"]
    for name in (OURS, IN_THREADS):
        ours = whole[f"{name}, {most}"]
        found[f"{name}, {most}"] = {
            "share_of_the_limit": ours["images_per_s"] / limit["images_per_s"],
            "share_of_the_limit_cpu": limit["cpu_ms"] / ours["cpu_ms"],
            "times_transformers": ours["images_per_s"] / theirs["images_per_s"],
            "times_transformers_cpu": theirs["cpu_ms"] / ours["cpu_ms"],
            # Theirs takes an image once more for each prompt.
            "times_transformers_pairs": ours["images_per_s"]
            / theirs["images_per_s"]
            * args.prompts,
        }
        if rate := args.images_per_second_per_host:
            cores = rate * ours["cpu_ms"] / 1e3
            found[f"{name}, {most}"] |= {"images_per_second_per_host": rate, "cores": cores}
    return found


def _parts(
    store: RecordStore, tokenizer: Tokenizer, spec: BatchSpec, sample: range, rounds: int
) -> dict[str, float]:
    """Milliseconds of the processor per image in each step, in one process, the best of rounds."""
    load = LoadExamples(store=store, tokenizer=tokenizer, spec=spec)
    decode_as_it_does = decode
    if spec.scaled_decode:
        decode_as_it_does = functools.partial(decode_scaled, at_least=spec.image_size)
    rows: list[Any] = [load(sample[0], np.random.default_rng(0))]  # Files opened, code warm.
    best = dict.fromkeys(("read", "decode", "resize", "row", "batch"), math.inf)
    for _ in range(rounds):
        spent = dict.fromkeys(best, 0.0)

        def timed(step: str, call: Callable[[], Any], spent: dict[str, float] = spent) -> Any:
            start = time.process_time()
            result = call()
            spent[step] += (time.process_time() - start) * 1e3 / len(sample)
            return result

        for i in sample:
            record = timed("read", lambda i=i: store[i])
            image = timed("decode", lambda data=record.image: decode_as_it_does(data))
            timed("resize", lambda image=image: resize(image, spec.image_size))
            rng = np.random.default_rng(i)
            rows = [*rows, timed("row", lambda i=i, rng=rng: load(i, rng))][-spec.batch_size :]
        batches = grain.MapDataset.source(rows).batch(len(rows)).repeat()
        for i in range(len(sample)):  # Once per image, instead of once per batch.
            timed("batch", lambda i=i, batches=batches: batches[i])
        best = {step: min(best[step], ms) for step, ms in spent.items()}
    return {
        "read the record": best["read"],
        "decode": best["decode"],
        "resize, and make an array": best["resize"],
        "draw, write and tokenise": best["row"] - best["read"] - best["decode"] - best["resize"],
        "stack the batch": best["batch"] / len(rows),
    }


def _scaled_decoding(images: list[bytes], size: Size) -> dict[str, float]:
    """What `decode_scaled` saves, and how far its pixels are off those of the exact path."""
    exact_s = scaled_s = 0.0
    changed, differences = 0, []
    for data in images:
        start = time.process_time()
        exact = resize(decode(data), size)
        middle = time.process_time()
        scaled = resize(decode_scaled(data, size), size)
        scaled_s += time.process_time() - middle
        exact_s += middle - start
        difference = np.abs(exact.astype(np.int16) - scaled)
        if difference.any():
            changed += 1
            differences.append((difference.mean(), np.square(difference.astype(int)).mean()))
    mean, square = np.mean(differences, axis=0).tolist() if differences else (0.0, 0.0)
    return {
        "share_of_images": changed / len(images),
        "exact_ms": exact_s * 1e3 / len(images),
        "scaled_ms": scaled_s * 1e3 / len(images),
        "mean_difference": mean,
        "root_mean_square_difference": math.sqrt(square),
    }


def _measure(start: Contender, batch: int, args: argparse.Namespace) -> dict[str, float]:
    """Images per second by the clock, milliseconds of the processor per image, of all processes."""
    warm_up = 2 if args.quick else 12  # More than all workers keep ready.
    with start() as batches:
        for _ in range(warm_up):
            next(batches)
        cpu, clock, number = _cpu_s(), time.perf_counter(), 0
        while number < 2 or time.perf_counter() - clock < args.seconds:
            next(batches)
            number += 1
        cpu, clock = _cpu_s() - cpu, time.perf_counter() - clock
    return {"images_per_s": number * batch / clock, "cpu_ms": cpu * 1e3 / (number * batch)}


def _cpu_s() -> float:
    """Seconds of the processor that this process and its living children have had (Linux)."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


# The contenders


@contextlib.contextmanager
def _bare(images: list[bytes], spec: BatchSpec, workers: int) -> Iterator[Iterator[int]]:
    context = multiprocessing.get_context("spawn")
    done: Any = context.Queue(maxsize=2 * workers)
    args = images, spec.image_size, spec.batch_size, done
    processes = [context.Process(target=_decode_on, args=args, daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        yield iter(done.get, None)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _decode_on(images: list[bytes], size: Size, batch: int, done: Any) -> None:
    number = 0
    while True:
        for _ in range(batch):
            image = Image.open(io.BytesIO(images[number % len(images)]))
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
            number += 1
        done.put(batch)


@contextlib.contextmanager
def _ours(
    store: RecordStore, tokenizer: Tokenizer, spec: BatchSpec, workers: int, threads: int
) -> Iterator[Iterator[Any]]:
    dataset = make_dataset(store, tokenizer, spec, seed=0)
    batches = iterate(dataset, start_step=0, num_workers=workers, num_threads=threads, buffer=2)
    try:
        yield batches
    finally:
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]  # Grain's iterators have it.


@contextlib.contextmanager
def _theirs(
    pairs: list[Pair], folder: Path, spec: BatchSpec, workers: int
) -> Iterator[Iterator[Any]]:
    from torch.utils.data import DataLoader

    order = _Order(len(pairs), spec.batch_size)
    loader = DataLoader(
        _Decoded(pairs),  # pyright: ignore[reportArgumentType]  # All that it needs.
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_Collate(folder, spec.target_length),
        multiprocessing_context="spawn",
    )
    batches = iter(loader)
    try:
        yield batches
    finally:
        order.is_over = True
        for _ in batches:  # Its workers do not end well with batches in their hands.
            pass


class _Order:
    """Batches of indices, round and round until it is over."""

    def __init__(self, number: int, batch_size: int):
        self._number, self._batch_size, self.is_over = number, batch_size, False

    def __iter__(self) -> Iterator[list[int]]:
        indices = itertools.cycle(range(self._number))
        while not self.is_over:
            yield list(itertools.islice(indices, self._batch_size))


class _Decoded:
    """Pairs with their images decoded: a dataset as torch knows them."""

    def __init__(self, pairs: list[Pair]):
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Image.Image, str, str]:
        data, prompt, target = self._pairs[index]
        return Image.open(io.BytesIO(data)).convert("RGB"), prompt, target


class _Collate:
    """A batch by transformers' processor, as its examples of fine-tuning do it."""

    def __init__(self, folder: Path, target_length: int):
        self._folder, self._target_length = folder, target_length

    @functools.cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self._folder)

    def __call__(self, samples: list[tuple[Image.Image, str, str]]) -> dict[str, Any]:
        images, prompts, targets = map(list, zip(*samples, strict=True))
        inputs = self._processor(images=images, text=prompts, padding=True, return_tensors="pt")
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        options["max_length"] = self._target_length
        return dict(inputs) | {"labels": self._processor.tokenizer(targets, **options).input_ids}


def _pair(record: Record, tokenizer: Tokenizer, spec: BatchSpec, *, seed: int) -> Pair | None:
    """One question of a record and its answer; None if it has no question for these tasks."""
    rng = np.random.default_rng(seed)
    examples = draw_examples(record, spec.weights, 1, rng)
    if not examples:
        return None
    budget = Budget(lambda text: len(tokenizer.encode(text)), spec.target_length - 2)
    target = target_of(examples[0], record.size, order="random", rng=rng, budget=budget)
    return record.image, examples[0].prompt, target.text


def _save_processor(tokenizer: Tokenizer, size: Size, folder: Path) -> None:
    cells = math.ceil(size[0] / 32) * math.ceil(size[1] / 32)
    save_hugging_face(
        tokenizer, folder, image_size=size, num_image_tokens=cells + 1, max_length=4096
    )


# What people see


def _machine() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        **{name: version(name) for name in ("pillow", "grain", "torch", "transformers")},
    }


def _about(store: RecordStore) -> dict[str, Any]:
    records = [store[i] for i in range(0, len(store), max(1, len(store) // SAMPLE))]
    return {
        "records": len(store),
        "kilobytes_per_image": statistics.mean(len(record.image) for record in records) / 1e3,
        "megapixels": statistics.mean(math.prod(record.size) for record in records) / 1e6,
        "regions_per_record": statistics.mean(len(record.regions) for record in records),
    }


def _show(row: dict[str, Any]) -> None:
    print(f"\n{row['size_px']} px, batches of {row['batch']}, {row['num_prompts']} prompts each\n")
    print("| step | CPU ms per image | images/s per core |\n|---|---:|---:|")
    for name, ms in row["parts_ms"].items():
        print(f"| {name} | {ms:.3f} | {1e3 / max(ms, 1e-3):,.0f} |")
    print("\n| all of it, processes | images/s | CPU ms per image |\n|---|---:|---:|")
    for name, found in row["whole"].items():
        print(f"| {name} | {found['images_per_s']:.1f} | {found['cpu_ms']:.3f} |")
    print()
    for name, found in row["conclusions"].items():
        print(
            f"{name}: {found['share_of_the_limit']:.0%} of the limit "
            f"({found['share_of_the_limit_cpu']:.0%} by CPU time), "
            f"{found['times_transformers']:.2f} x transformers "
            f"({found['times_transformers_cpu']:.2f} x by CPU time; "
            f"{found['times_transformers_pairs']:.1f} x its prompts with their targets)"
        )
        if "cores" in found:
            rate = found["images_per_second_per_host"]
            print(f"{name}: {rate:,.0f} images/s per host need {found['cores']:.1f} cores")
    scaled = row["scaled"]
    print(
        f"scaled decoding: {scaled['share_of_images']:.0%} of the images change, by "
        f"{scaled['mean_difference']:.2f} of 255 in the mean (root mean square "
        f"{scaled['root_mean_square_difference']:.2f}); decode and resize take "
        f"{scaled['scaled_ms']:.2f} instead of {scaled['exact_ms']:.2f} ms"
    )


if __name__ == "__main__":
    main()

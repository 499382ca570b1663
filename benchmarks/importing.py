# SPDX-License-Identifier: Apache-2.0
"""Images per second and core of `records import`, beside a loop that merely copies the bytes.

    python benchmarks/importing.py --json benchmarks/importing.json
    python benchmarks/importing.py --sizes 1000 --photos ~/coco/val2017

A COCO dataset of each size is laid out first: hard links to a few photos (drawn ones, or those of
`--photos`), with five captions and seven outlined objects per image. It is then imported by one
process, listing and annotation work included. The reference reads the same files and writes their
bytes into an ArrayRecord, in the same run. Rates are per second of processor time of all threads,
so that other work on the machine does not count; seconds by the clock stand beside them.

Shares are those of one pass over at most 1,000 of the images, step by step.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image, ImageFilter

from florence2_jax.records.checks import MAX_IMAGE_BYTES, mend_image
from florence2_jax.records.columns import serialize
from florence2_jax.records.importers import plan_import
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.store import write_store

NUM_PHOTOS = 64
REGIONS, CAPTIONS = 7, 5  # As in COCO, on average.


def draw_photos(folder: Path, side_px: int = 512) -> list[Path]:
    """Photos of blurred noise: about as many bytes per pixel as those of a camera."""
    rng = np.random.default_rng(0)
    for i in range(NUM_PHOTOS):
        noise = rng.integers(0, 256, (side_px * 3 // 4, side_px, 3), np.uint8)
        image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.2))
        image.save(folder / f"photo{i}.jpg", quality=85)
    return sorted(folder.glob("*.jpg"))


def lay_out(folder: Path, photos: list[Path], size: int) -> None:
    """A COCO dataset of `size` images."""
    images = folder / "train2017"
    images.mkdir(parents=True)
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(1)
    sizes = [Image.open(photo).size for photo in photos]
    rows: list[dict] = []
    captions: list[dict] = []
    instances: list[dict] = []
    for i in range(size):
        (width, height), name = sizes[i % len(photos)], f"{i:012d}.jpg"
        link_or_copy(photos[i % len(photos)], images / name)
        rows.append({"id": i, "file_name": name, "width": width, "height": height})
        captions += [
            {"id": i * CAPTIONS + k, "image_id": i, "caption": f"A photo of thing {k} at {i}."}
            for k in range(CAPTIONS)
        ]
        for k, ring in enumerate((rng.random((REGIONS, 24, 2)) * (width, height)).round(2)):
            low, high = ring.min(0), ring.max(0)
            box = [*low.tolist(), *(high - low).tolist()]
            row = {"id": i * REGIONS + k, "image_id": i, "category_id": k + 1, "bbox": box}
            instances.append(row | {"segmentation": [ring.reshape(-1).tolist()], "iscrowd": 0})
    categories = [{"id": k + 1, "name": f"thing {k}"} for k in range(REGIONS)]
    for kind, annotations in (("captions", captions), ("instances", instances)):
        content = {"images": rows, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{kind}_train2017.json").write_text(json.dumps(content))


def link_or_copy(photo: Path, path: Path) -> None:
    """A hard link, where the file system takes so many of them."""
    try:
        os.link(photo, path)
    except OSError:
        shutil.copyfile(photo, path)


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the processor (all threads) and by the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return {"cpu_s": time.process_time() - cpu, "clock_s": time.perf_counter() - clock}


def copy_bytes(files: Iterable[Path], shard: Path) -> None:
    """The reference: what importing cannot go below."""
    writer = ArrayRecordWriter(str(shard), "group_size:1,snappy")
    for path in files:
        writer.write(path.read_bytes())
    writer.close()


def shares(plan: Any, shard: Path) -> dict[str, float]:
    """Milliseconds of the processor per image in each step."""
    units = [unit for units in plan.units.values() for unit in units[:1000]]
    files = [unit.image.read_bytes() for unit in units]
    records = [plan.make(unit, Ledger()) for unit in units]
    data = [serialize(record) for record in records]
    writer = ArrayRecordWriter(str(shard), "group_size:1,snappy")
    steps = {
        "read": lambda: [unit.image.read_bytes() for unit in units],
        "check the image": lambda: [mend_image(file, Ledger(), "") for file in files],
        "make the record, all in all": lambda: [plan.make(unit, Ledger()) for unit in units],
        "serialise and validate": lambda: [serialize(record) for record in records],
        "write": lambda: ([writer.write(one) for one in data], writer.close()),
    }
    ms = {name: timed(step)["cpu_s"] * 1e3 / len(units) for name, step in steps.items()}
    whole = ms.pop("make the record, all in all")
    ms["annotations"] = whole - ms["read"] - ms["check the image"]
    return ms


def run(size: int, photos: list[Path], folder: Path) -> dict[str, Any]:
    """One row of the table."""
    source = folder / "coco"
    lay_out(source, photos, size)
    files = sorted((source / "train2017").iterdir())
    plans: list[Any] = []
    listing = timed(lambda: plans.append(plan_import("coco", source)))
    writing = timed(lambda: write_store(folder / "store", plans[0], name="coco"))
    copying = timed(lambda: copy_bytes(files, folder / "copy.array_record"))
    whole_cpu_s = listing["cpu_s"] + writing["cpu_s"]
    row = {
        "images": size,
        "kilobytes_per_image": sum(path.stat().st_size for path in files) / size / 1e3,
        "images_per_cpu_s": size / whole_cpu_s,
        "images_per_clock_s": size / (listing["clock_s"] + writing["clock_s"]),
        "copy_images_per_cpu_s": size / copying["cpu_s"],
        "times_the_copy": whole_cpu_s / copying["cpu_s"],
        "listing_ms": listing["cpu_s"] * 1e3 / size,
        "writing_ms": writing["cpu_s"] * 1e3 / size,
        "steps_ms": shares(plans[0], folder / "steps.array_record"),
    }
    for path in (source, folder / "store"):
        shutil.rmtree(path)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and the steps of the last row."""
    print(
        "| images | kB each | images per core s | bare copy | times the copy | list ms | write ms |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['images']:,} | {row['kilobytes_per_image']:.0f} "
            f"| {row['images_per_cpu_s']:,.0f} | {row['copy_images_per_cpu_s']:,.0f} "
            f"| {row['times_the_copy']:.1f} | {row['listing_ms']:.3f} | {row['writing_ms']:.3f} |"
        )
    steps = rows[-1]["steps_ms"]
    total = sum(steps.values())
    for name, ms in steps.items():
        print(f"{name}: {ms:.3f} ms, {ms / total:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--photos", type=Path, help="folder of JPEGs (drawn ones)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="importing") as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        photos = (
            sorted(args.photos.glob("*.jpg")) if args.photos else draw_photos(folder / "photos")
        )
        assert all(path.stat().st_size <= MAX_IMAGE_BYTES for path in photos)
        for size in args.sizes:
            rows.append(run(size, photos, folder))
            (folder / "copy.array_record").unlink()
    show(rows)
    if args.json:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

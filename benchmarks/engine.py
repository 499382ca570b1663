# SPDX-License-Identifier: Apache-2.0
"""Images per second of the data engine's phase 1, and what killing workers and a node costs it.

    python benchmarks/engine.py --json benchmarks/engine.json
    python benchmarks/engine.py --only chaos --images 50 --part 4 --kill-every-s 5 --kills 1

Two specialists look at drawn pages with a few words on each, or at the images of `--records`:
Tesseract reads the words, and OpenCV finds outlines (Canny edges, contours, the five largest).

`rates` runs both with 1 and 2 processes without Ray. `chaos` runs them on a Ray cluster of three
nodes on this machine, each of one core, first undisturbed, then with a worker killed every so many
seconds and one node removed when a third of the images is done. Afterwards every image must have
been annotated once by each specialist, no record may be lost, and the store must be that of the
undisturbed run byte by byte. The overhead is that of the clock, beside the time of workers that
came to nothing. `--kills` bounds the number of kills, for a short trial.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import platform
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from florence2_jax.engine.annotate import annotate
from florence2_jax.engine.parts import read_part
from florence2_jax.engine.scaling import ScalingConfig
from florence2_jax.engine.specialists import create
from florence2_jax.engine.specialists.base import Annotations, Outcome, Specialist
from florence2_jax.records.ledger import Ledger
from florence2_jax.records.schema import Label, Record, Region
from florence2_jax.records.store import Plan, RecordStore, write_store

SIZE = (480, 360)
WORDS = "apple bridge candle dragon engine forest garden harbour island jacket kettle".split()
NUM_NODES = 3


@dataclasses.dataclass(eq=False)
class Outlines(Specialist):
    """Boxes of the largest outlines in an image."""

    name: str = "opencv:outlines"
    version: str = "1"
    batch_size: int = 4
    kinds = ("boxes",)

    def load(self) -> None:
        import cv2

        cv2.setNumThreads(1)

    def annotate(self, records: Sequence[Record]) -> Sequence[Outcome]:
        return [self._one(record) for record in records]

    def _one(self, record: Record) -> Outcome:
        import cv2

        grey = np.asarray(Image.open(io.BytesIO(record.image)).convert("L"))
        smooth: Any = cv2.bilateralFilter(grey, 9, 60, 60)
        edges = cv2.dilate(cv2.Canny(smooth, 60, 180), np.ones((5, 5), np.uint8))
        contours, _ = cv2.findContours(edges, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        rectangles = sorted(map(cv2.boundingRect, contours), key=lambda r: (-r[2] * r[3], r))
        regions = tuple(
            Region(
                box=(float(x), float(y), float(x + width), float(y + height)),
                labels=(Label(text="outline"),),
                provenance=self.maker(),
            )
            for x, y, width, height in rectangles[:5]
        )
        return Annotations(regions=regions)


def draw_page(index: int, ledger: Ledger) -> Record:
    """A noisy page with five words in it."""
    rng = random.Random(index)
    noise = np.random.default_rng(index).integers(200, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    page = Image.fromarray(noise)
    draw = ImageDraw.Draw(page)
    for row in range(5):
        place = rng.randrange(20, SIZE[0] - 200), 20 + row * 65
        draw.text(place, rng.choice(WORDS), fill="black", font_size=rng.randrange(18, 40))
    file = io.BytesIO()
    page.save(file, "JPEG", quality=90)
    ledger.read("image")
    ledger.keep("image")
    width, height = SIZE
    return Record(id=f"page {index}", image=file.getvalue(), width=width, height=height)


def specialists() -> list[Specialist]:
    """Both, as they are asked."""
    return [Outlines(), create("tesseract", language="eng", batch_size=4)]


def rates(source: Path, folder: Path, counts: Sequence[int], part: int) -> list[dict[str, Any]]:
    """Images per second by the clock and by the workers' time, a row per specialist and count."""
    rows = []
    scaling = ScalingConfig(images_per_part=part)
    for count in counts:
        last: list[Any] = []

        def keep(progress: Any, last: list[Any] = last) -> None:
            last[:] = progress

        made = folder / f"workers{count}"
        report = annotate(
            source, made, specialists(), num_workers=count, scaling=scaling, on_progress=keep
        )
        for one, progress in zip(report["specialists"], last, strict=True):
            row = {"specialist": one["name"], "workers": count, "images": one["images"]}
            row["images_per_s"] = progress.images_per_s  # Loading included.
            row["images_per_worker_s"] = one["images"] / one["worker_s"]
            row["mean_load_s"] = one["workers"]["mean_load_s"]
            rows.append(row)
    return rows


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """A Ray cluster of three nodes, each of one core, on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        for _ in range(NUM_NODES - 1):
            nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes
    finally:
        nodes.shutdown()


def workers_of(node: Any) -> list[int]:
    """Process ids of the actors at work on a node: children of its own raylet."""
    raylets = {process.process.pid for process in node.all_processes.get("raylet", ())}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (folder / "cmdline").read_text().partition("\0")[0]
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if title.startswith("ray::_Actor.work") and int(parent) in raylets:
                found.append(int(folder.name))
    return found


class Chaos(threading.Thread):
    """Kills a worker every so many seconds, and removes a node once a third is done."""

    def __init__(self, nodes: Any, every_s: float, most: int):
        super().__init__(daemon=True)
        self.nodes, self.every_s, self.most = nodes, every_s, most
        self.kills, self.removed, self.share = 0, 0, 0.0
        self._ended = threading.Event()

    def saw(self, progress: Sequence[Any]) -> None:
        self.share = sum(one.images for one in progress) / sum(one.total for one in progress)

    def end(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        rng, next_kill = random.Random(0), time.monotonic() + self.every_s
        while not self._ended.wait(0.5):
            if self.share >= 1 / 3 and not self.removed:
                self._remove_node()
            is_due = time.monotonic() >= next_kill and self.kills < self.most
            pids = [pid for node in self.nodes.list_all_nodes() for pid in workers_of(node)]
            if is_due and pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    self.kills += 1
                    next_kill = time.monotonic() + self.every_s

    def _remove_node(self) -> None:
        """Takes away a node on which a worker is at work."""
        at_work = [node for node in self.nodes.worker_nodes if workers_of(node)]
        if at_work:
            self.nodes.remove_node(at_work[0], allow_graceful=False)
            self.removed = 1


def chaos(source: Path, folder: Path, part: int, every_s: float, most: int) -> dict[str, Any]:
    """The undisturbed run and the other one, and whether they agree."""
    scaling = ScalingConfig(images_per_part=part)
    result: dict[str, Any] = {"nodes": NUM_NODES, "kill_every_s": every_s, "images_per_part": part}
    for name in ("calm", "chaos"):
        with cluster() as nodes:
            monkey = Chaos(nodes, every_s, most)
            if name == "chaos":
                monkey.start()
            report = annotate(
                source, folder / name, specialists(), ray=nodes.address, scaling=scaling,
                on_progress=monkey.saw,
            )  # fmt: skip
            if name == "chaos":
                monkey.end()
        result[name] = {"clock_s": report["clock_s"], "specialists": report["specialists"]}
        result[name] |= {"kills": monkey.kills, "nodes_removed": monkey.removed}
    ids = [record.id for record in RecordStore(source, "train")]
    result["images"] = len(ids)
    result["annotated_once_by_each"] = all(
        collections.Counter(ids) == counted for counted in annotated(folder / "chaos.parts")
    )
    result["lost"] = len(set(ids) - {r.id for r in RecordStore(folder / "chaos", "train")})
    result["same_bytes"] = contents(folder / "calm") == contents(folder / "chaos")
    result["overhead"] = result["chaos"]["clock_s"] / result["calm"]["clock_s"] - 1
    work_s, lost_s = (
        sum(value(one) for one in result["chaos"]["specialists"])
        for value in (lambda one: one["worker_s"], lambda one: one["workers"]["lost_s"])
    )
    result["lost_worker_time"] = lost_s / (work_s + lost_s)
    return result


def annotated(parts: Path) -> Iterator[collections.Counter[str]]:
    """Per specialist, how often each id stands in its parts."""
    for folder in sorted(path for path in parts.iterdir() if path.is_dir()):
        rows = [row for path in sorted(folder.glob("*.jsonl")) for row in read_part(path)[0]]
        yield collections.Counter(id_ for id_, _ in rows)


def contents(directory: Path) -> dict[str, bytes]:
    """All files of a store."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def show(figures: dict[str, Any]) -> None:
    """Both tables."""
    if rows := figures.get("rates"):
        print("| specialist | workers | images/s | images/s of a worker | load s |")
        print("|---|---:|---:|---:|---:|")
        for row in rows:
            print(
                f"| {row['specialist']} | {row['workers']} | {row['images_per_s']:.2f} "
                f"| {row['images_per_worker_s']:.2f} | {row['mean_load_s']:.1f} |"
            )
    if found := figures.get("chaos"):
        calm, wild = found["calm"], found["chaos"]
        workers = [one["workers"] for one in wild["specialists"]]
        print(
            f"{found['images']:,} images, {wild['kills']} workers killed, {wild['nodes_removed']} "
            f"node removed, {sum(one['died'] for one in workers)} workers lost in all"
        )
        print(f"annotated once by each: {found['annotated_once_by_each']}; lost: {found['lost']}")
        print(f"same bytes as undisturbed: {found['same_bytes']}")
        print(
            f"{wild['clock_s']:.0f} s against {calm['clock_s']:.0f} s: {found['overhead']:+.0%}; "
            f"{found['lost_worker_time']:.1%} of the workers' time came to nothing"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000, help="pages to draw (2000)")
    parser.add_argument("--records", type=Path, help="a store instead, split train")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--part", type=int, default=16, help="images of a part (16)")
    parser.add_argument("--kill-every-s", type=float, default=20.0)
    parser.add_argument("--kills", type=int, default=10**6, help="at most")
    parser.add_argument("--only", choices=("rates", "chaos"))
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    figures: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="engine") as name:
        folder = Path(name)
        source = args.records or folder / "pages"
        if not args.records:
            write_store(source, Plan(units={"train": range(args.images)}, make=draw_page, job={}))
        if args.only != "chaos":
            figures["rates"] = rates(source, folder, args.workers, args.part)
        if args.only != "rates":
            figures["chaos"] = chaos(source, folder, args.part, args.kill_every_s, args.kills)
    show(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Kills training again and again, and counts what was lost: the table of docs/reliability.md.

    python benchmarks/chaos.py --kills 100

Real `florence2-jax train` processes on CPU, 1 to 4 at a time, a tiny model. What was done is kept
in benchmarks/chaos.json after every life (a run with several faults): run it again and it goes on.
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "chaos"))

import cluster  # noqa: E402
import faults  # noqa: E402

RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "reliability.md"
STEPS = 64
FAULTS_PER_LIFE = 8
SHAPES = ((1, 2), (2, 1), (2, 1), (2, 2), (4, 1))  # Processes, devices of each; drawn evenly.


class Pauses:
    """Notices that the machine stood still: what was then too late is nobody's fault."""

    def __init__(self):
        self.count = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(0.5)
            self.count += time.monotonic() - before > 10.0


def main() -> None:
    """Lives until there were enough kills; writes the page after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="at least so many in all")
    parser.add_argument("--faults", nargs="*", choices=faults.FAULTS, help="only these")
    parser.add_argument("--processes", type=int, help="only so many at a time")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument("--elastic", action="store_true", help="only the run on 4, 2 and 8 hosts")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that is written")
    parser.add_argument("--folder", type=Path, help="keep runs and compiled programs here")
    args = parser.parse_args()
    book = json.loads(args.json.read_text()) if args.json.exists() else {"lives": [], "elastic": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        records = _records(folder)
        pauses = Pauses()
        with cluster.Nursery(folder / "xla") as nursery:
            while not args.elastic and _num_events(book) < args.kills:
                number, before = len(book["lives"]), pauses.count
                life = _live(nursery, folder, records, args, number)
                if life is not None and pauses.count == before:
                    book["lives"].append(life)
                    _keep(args, book)
                else:
                    book["repeated"] = book.get("repeated", 0) + 1
                    print("the machine stood still: this life is lived again", flush=True)
            if args.elastic or not book["elastic"]:
                book["elastic"].append(_elastic(nursery, folder, records))
                _keep(args, book)


def _num_events(book: dict[str, Any]) -> int:
    return sum(len(life["events"]) for life in book["lives"])


def _records(folder: Path) -> Path:
    records = folder / "records"
    if not records.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "florence2_jax", "records", "scenes", "264", str(records)]
        words += ["--validation", "8", "--size-px", "64", "--workers", "1"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return records


def _new(nursery: cluster.Nursery, folder: Path, records: Path) -> cluster.Run:
    return cluster.Run(nursery, Path(tempfile.mkdtemp(prefix="life-", dir=folder)), records)


def _reference(
    nursery: cluster.Nursery, folder: Path, records: Path, shape: tuple[int, int]
) -> dict[str, Any]:
    """What the same run leaves if nothing happens to it."""
    path = folder / f"straight-{shape[0]}x{shape[1]}.json"
    if not path.exists():
        life = faults.Life(_new(nursery, folder, records), shape, STEPS, random.Random(0))
        statuses = life.finish().wait()
        assert set(statuses) == {0}, life.run.attempts[-1].text()
        account = life.run.account()
        path.write_text(json.dumps({"state": faults.final_state(life.run), "ids": account.ids}))
    return json.loads(path.read_text())


def _live(nursery, folder: Path, records: Path, args, number: int) -> dict[str, Any] | None:
    rng = random.Random(f"{args.seed} {number}")
    shapes = [shape for shape in SHAPES if args.processes in (None, shape[0])]
    shape = rng.choice(shapes)
    straight = _reference(nursery, folder, records, shape)
    life = faults.Life(_new(nursery, folder, records), shape, STEPS, rng)
    names = args.faults or list(faults.FAULTS)
    weights = [faults.FAULTS[name][1] for name in names]
    starts_s: list[float] = []
    try:
        for name in rng.choices(names, weights, k=FAULTS_PER_LIFE):
            if max(life.run.checkpoints(), default=0) >= STEPS - 6:
                break
            event = faults.FAULTS[name][0](life)
            print(f"life {number}: {event}", flush=True)
        statuses = life.finish().wait()
    except TimeoutError as error:  # A hang is a result, unless the machine stood still.
        print(f"life {number}: {error}", flush=True)
        statuses = [-1]
    is_done = set(statuses) == {0}
    account = life.run.account()
    ids = {str(step): rows for step, rows in account.ids.items()}
    starts_s = [x for x in (a.first_step_s() for a in life.run.attempts) if x is not None]
    result = {
        "processes": shape[0],
        "devices": shape[1],
        "events": [dataclasses.asdict(event) for event in life.events],
        "is_finished": is_done,
        "is_bit_exact": is_done and faults.final_state(life.run) == straight["state"],
        "has_every_example_once": account.is_whole and ids == straight["ids"],
        "start_s": starts_s,
    }
    good = all(result[name] for name in ("is_finished", "is_bit_exact", "has_every_example_once"))
    print(f"life {number}: {'as if nothing had happened' if good else result}", flush=True)
    return result


def _elastic(nursery, folder: Path, records: Path) -> dict[str, Any]:
    """One run on 4, then 2, then 8 processes; its examples beside those of one process."""
    straight = _reference(nursery, folder, records, (1, 2))
    run, steps = _new(nursery, folder, records), []
    for processes, until in ((4, 20), (2, 40), (8, STEPS)):
        overrides = [f"config.total_steps={STEPS}"]
        attempt = run.start(processes, 1, overrides=overrides, command=["--stop-after", str(until)])
        statuses = attempt.wait(1800)
        assert set(statuses) == {0}, attempt.text()
        steps.append(until)
    ids = {str(step): rows for step, rows in run.account().ids.items()}
    losses = run.losses()
    print(f"4 -> 2 -> 8 hosts: the same batches: {ids == straight['ids']}", flush=True)
    return {"hosts": [4, 2, 8], "until": steps, "is_same_sequence": ids == straight["ids"],
            "last_loss": losses[STEPS]}  # fmt: skip


def _keep(args: argparse.Namespace, book: dict[str, Any]) -> None:
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "orbax-checkpoint", "grain")]
    book["machine"] = ", ".join(
        [
            f"{platform.machine()} with {len(os.sched_getaffinity(0))} cores",
            f"Python {platform.python_version()}",
            *versions,
        ]
    )
    temporary = args.json.with_suffix(".tmp")
    temporary.write_text(json.dumps(book, indent=1) + "\n")
    temporary.rename(args.json)
    args.page.write_text(page(book))


def page(book: dict[str, Any]) -> str:
    """docs/reliability.md from what was kept."""
    lives = book["lives"]
    events = [event for life in lives for event in life["events"]]
    names = {event["fault"] for event in events}
    rows = [_row(name, [e for e in events if e["fault"] == name]) for name in sorted(names)]
    rows.append(_row("**all**", events))
    good = [sum(life[name] for life in lives) for name in _VERDICTS]
    elastic = [one["is_same_sequence"] for one in book["elastic"]]
    lost = [event["lost_steps"] for event in events if event["lost_steps"] >= 0]
    return _PAGE.format(
        machine=book.get("machine", ""),
        table="\n".join(rows),
        events=len(events),
        lives=len(lives),
        finished=good[0],
        bit_exact=good[1],
        once=good[2],
        repeated=book.get("repeated", 0),
        elastic=f"{sum(elastic)} of {len(elastic)}",
        shapes=", ".join(
            f"{sum(life['processes'] == count for life in lives)} on {count}"
            for count in sorted({life["processes"] for life in lives})
        ),
        every=faults.EVERY_STEPS,
        most=max(lost, default=0),
        over=sum(x > faults.EVERY_STEPS for x in lost),
        steps=STEPS,
        per_life=FAULTS_PER_LIFE,
    )


_VERDICTS = ("is_finished", "is_bit_exact", "has_every_example_once")


def _row(name: str, events: list[dict[str, Any]]) -> str:
    recovered = [event for event in events if event["lost_steps"] >= 0]
    lost = [event["lost_steps"] for event in recovered]
    told = sum(event["is_as_told"] for event in events)
    seconds = sorted(event["next_step_s"] for event in recovered)
    ends = sorted(event["end_s"] for event in events)
    return (
        f"| {name} | {len(events)} | {len(recovered)} | {told} | {_mean(lost)} | "
        f"{max(lost, default=0)} | {_middle(ends)} | {_middle(seconds)} |"
    )


def _mean(values: list[int]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else "-"


def _middle(values: list[float]) -> str:
    return f"{values[len(values) // 2]:.1f}" if values else "-"


_PAGE = """# Reliability

What becomes of a run when hosts die. Made by `python benchmarks/chaos.py`, which starts real
`florence2-jax train` processes (JAX on CPU, gloo between them; 1 to 4 hosts are 1 to 4 processes of
one machine), does something to them, starts them again, and compares what they leave with a run
that nothing happened to. Results are kept in `benchmarks/chaos.json`. Made on: {machine}.

**No TPU was available.** What is shown here is the protocol: who stops when, what is saved, what is
restored, which examples are seen. It says nothing about the speed of a pod, about bit-exactness on
TPUs, or about how Google Cloud Storage fails.

## Faults

{events} faults in {lives} lives ({shapes} processes). A life is one run of {steps} steps that
meets up to {per_life} faults, each drawn at random, at a random moment; a save is due every
{every} steps.

| fault | tried | recovered | as documented | steps lost, mean | most | end, s | next step, s |
|---|---|---|---|---|---|---|---|
{table}

*Recovered*: the next start went on from a checkpoint that verifies. *As documented*: exit statuses,
words and files were those of [pods.md](pods.md) and of `florence2-jax train --help`. *Steps lost*
were done again. *End*: median seconds from the fault until the last process had ended by
itself. *Next step*: median seconds from the next start until its first step, programs compiled
before, imports not counted (processes are forked from one that has imported everything).

- {finished} of {lives} lives came to their last step.
- {bit_exact} of them left, bit for bit, what the undisturbed run on as many processes left: every
  array of parameters and optimizer (digests), the position in the data, and the loss of every step
  (sha256). So no wrong bit was restored unnoticed.
- {once} of them trained every example of every step exactly once in the steps that count.
- 4, then 2, then 8 hosts: the same global batches as one process in {elastic} tries.
- Most steps lost: {most}; {over} faults cost more than one interval of {every} steps. A checkpoint
  counts once it is whole: a host that dies while one is being written loses the interval before it
  and the steps since, and a damaged newest checkpoint costs the way back to the one before.
- {repeated} lives were lived again because the machine itself stood still meanwhile.
"""


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Ten thousand damaged datasets of every format, imported: what becomes of them.

    python benchmarks/mutations.py --json benchmarks/mutations.json
    python benchmarks/mutations.py --cases 500 --datasets coco,voc --seed 100000

A case is a dataset of four images, damaged in one to three ways (`tests/records/importers`, where
`mutation_runs.py` says what must hold of each). Given the same numbers it is the same case. Ends
with status 1 if anything did not hold. TMPDIR on a disk in memory saves most of the time.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "records")]

from importers.mutating import ALL  # noqa: E402
from importers.mutation_runs import Outcome, run_cases  # noqa: E402
from importers.small_datasets import DATASETS  # noqa: E402


def row(outcomes: list[Outcome]) -> dict[str, float]:
    """What is told of some cases."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    return {
        "cases": len(outcomes),
        "imported": kinds["imported"],
        "refused": kinds["refused"],
        "problems": sum(bool(outcome.problem) for outcome in outcomes),
        "neighbours": sum(o.num_touched < len(ALL) for o in outcomes),
        "unsound": sum(outcome.num_unsound for outcome in outcomes),
        "mean_ms": round(1e3 * sum(o.cpu_s for o in outcomes) / len(outcomes), 1),
        "max_s": round(max(outcome.cpu_s for outcome in outcomes), 2),
        "peak_mib": max(outcome.peak_bytes for outcome in outcomes) >> 20,
    }


def reason(message: str) -> str:
    """What a refusal says, without names and numbers."""
    text = re.sub(r"/(a/source|store)\S*|'[^']*'|\"[^\"]*\"|\([^)]*\)+", "_", message)
    return re.sub(r"(_|\d+)( _|: _)*", "_", text)[:60]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each dataset")
    parser.add_argument("--json", type=Path, help="where the table goes, too")
    args = parser.parse_args()
    names = args.datasets.split(",")
    cases = [(names[i % len(names)], args.seed + i // len(names)) for i in range(args.cases)]
    started, found = time.perf_counter(), defaultdict(list)
    for done, outcome in enumerate(run_cases(sorted(cases, key=lambda c: names.index(c[0]))), 1):
        found[outcome.dataset].append(outcome)
        if outcome.problem:
            print(f"{outcome.dataset} {outcome.seed} ({outcome.damage}): {outcome.problem}")
        if done % 500 == 0:
            print(f"{done} of {len(cases)} in {time.perf_counter() - started:.0f} s", flush=True)
    everything = [outcome for outcomes in found.values() for outcome in outcomes]
    table = {name: row(outcomes) for name, outcomes in found.items()} | {"all": row(everything)}
    reasons = Counter(reason(o.message) for o in everything if o.kind == "refused")
    print(f"{'':>14}", *(f"{name:>10}" for name in table["all"]))
    for name, values in table.items():
        print(f"{name:>14}", *(f"{value:>10}" for value in values.values()))
    print(
        "refused as a whole:", *(f"{num:>6}  {why}" for why, num in reasons.most_common()), sep="\n"
    )
    if args.json:
        args.json.write_text(json.dumps({"table": table, "refused": dict(reasons)}, indent=1))
    return int(table["all"]["problems"] > 0)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Plans of the pretraining configs on pods, and how a step scales: writes `docs/pod_plans.md`.

    python benchmarks/pod_plans.py                       # everything that is not there yet
    python benchmarks/pod_plans.py --only pretrain_base  # plans whose name has this in it
    python benchmarks/pod_plans.py --only v5e --again    # also those that are there already
    python benchmarks/pod_plans.py --whole               # compiles to the end: hours

Each plan is what `florence2-jax plan --quick` says (with `--whole`: without `--quick`), kept as
JSON under `--plans`; the page is written anew from those that are there, so that an interrupted run
is continued by the same command. A quick plan takes one or two minutes of an idle core, a whole one
about six times as long, and both several times as much where it does not fit, since the compiler
then looks for what it could recompute.
"""

import argparse
import copy
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florence2_jax.cli.train import load_config
from florence2_jax.planning.chips import Topology
from florence2_jax.planning.plan import plan
from florence2_jax.planning.tables import number
from florence2_jax.typing import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGE, PLOT = ROOT / "docs" / "pod_plans.md", ROOT / "docs" / "pod_plans_scaling.svg"
GIB = 1 << 30

CONFIGS = ("pretrain:base", "pretrain:large", "pretrain_highres:base", "pretrain_highres:large")
PODS = (
    ("v5e:16x16", 1),
    ("v5p:8x8x8", 1),
    ("v6e:16x16", 1),
    ("v5e:16x16", 4),
    ("v4:8x8x8", 1),
    ("tpu7x:4x4x8", 1),
)
# Where a run file does not fit as it is, also with the first remedy that its plan names.
CHANGED = (
    ("pretrain:large", ("v5e:16x16", 1), ("model.remat=full",)),
    ("pretrain_highres:large", ("v5e:16x16", 1), ("model.remat=full", "accumulate=3")),
    ("pretrain_highres:large", ("v6e:16x16", 1), ("model.remat=full",)),
)
SCALING = (("v5e:4x4", 1), ("v5e:8x8", 1), ("v5e:16x16", 1), ("v5e:16x16", 4), ("v5e:16x16", 16))
SCALING_CONFIG, IMAGES_PER_CHIP = "pretrain:base", 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A plan of the page."""

    config: str
    topology: Topology
    batch_size: int | None = None  # None: that of the run file.
    overrides: tuple[str, ...] = ()  # Of other values, as `--config.` takes them.

    @property
    def name(self) -> str:
        slices = f"{self.topology.num_slices}x" if self.topology.num_slices > 1 else ""
        scaled = "" if self.batch_size in (None, self._own_batch_size) else f"_{self.batch_size}"
        parts = (f"{self.config}_{slices}{self.topology.name}{scaled}", *self.overrides)
        return "_".join(parts).replace(":", "_")

    @functools.cached_property
    def _values(self) -> Mapping[str, Any]:
        file, _, variant = self.config.partition(":")
        overrides = [f"--config.{override}" for override in self.overrides]
        return load_config(f"{ROOT}/configs/{file}.py:{variant}", overrides)

    @property
    def _own_batch_size(self) -> int:
        return self._values["input"]["batch_size"]

    def run(self, *, quick: bool) -> dict[str, Any]:
        """Its report, or what went wrong."""
        config = copy.deepcopy(self._values)
        config["input"]["batch_size"] = self.batch_size or self._own_batch_size
        try:
            return plan(config, self.topology, quick=quick)
        except UserError as error:
            return {"error": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plans", type=Path, default=ROOT / "runs" / "plans", help="their JSON")
    parser.add_argument(
        "--only", nargs="*", default=[""], help="plans that have this in their name"
    )
    parser.add_argument("--again", action="store_true", help="also plans that are there already")
    parser.add_argument("--whole", action="store_true", help="generate code, compile to the end")
    args = parser.parse_args()
    args.plans.mkdir(parents=True, exist_ok=True)
    pods = [Case(name, Topology.parse(*pod)) for name in CONFIGS for pod in PODS]
    pods += [Case(name, Topology.parse(*pod), None, changes) for name, pod, changes in CHANGED]
    pods.sort(key=lambda case: CONFIGS.index(case.config))  # Those stand with their run file.
    slices = [Topology.parse(*name) for name in SCALING]
    scaling = [Case(SCALING_CONFIG, one, IMAGES_PER_CHIP * one.num_chips) for one in slices]
    for case in {case.name: case for case in (*pods, *scaling)}.values():
        path = args.plans / f"{case.name}.json"
        if not any(part in case.name for part in args.only):
            continue
        if not args.again and _is_there(path, whole=args.whole):
            continue
        started_s = time.perf_counter()
        report = case.run(quick=not args.whole)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{case.name}: {time.perf_counter() - started_s:.0f} s", file=sys.stderr)
        write_page(args.plans, pods, scaling)
    write_page(args.plans, pods, scaling)


def _is_there(path: Path, *, whole: bool) -> bool:
    if not path.exists():
        return False
    report = json.loads(path.read_text(encoding="utf-8"))
    return not whole or "error" in report or not report["fits"] or report["has_code"]


def write_page(folder: Path, pods: Sequence[Case], scaling: Sequence[Case]) -> None:
    """The page out of the plans that are there."""

    def reports(cases: Sequence[Case]) -> list[tuple[Case, dict[str, Any]]]:
        found = [(case, folder / f"{case.name}.json") for case in cases]
        return [(case, json.loads(path.read_text())) for case, path in found if path.exists()]

    found, scaled = reports(pods), reports(scaling)
    missing = [case for case in (*pods, *scaling) if not (folder / f"{case.name}.json").exists()]
    points = [(case, report) for case, report in scaled if "estimates" in report]
    parts = [_HEAD, "## The pretraining configs\n", _versions(found + scaled)]
    parts += [_markdown(_FIT, [_fit(*one) for one in found])]
    parts += [_markdown(_SPEED, [_speed(*one) for one in found if "estimates" in one[1]])]
    parts += [_markdown(_RUN, [_whole_run(*one) for one in found if "estimates" in one[1]])]
    parts += [_problems(found + scaled), _SCALING_HEAD]
    parts += [_markdown(_SCALE, [_scale(*one) for one in points])]
    if len(points) > 1:
        PLOT.write_text(draw(points), encoding="utf-8")
        parts.append(f"![step time and collective bytes by number of chips]({PLOT.name})\n")
    if missing:
        names = "; ".join(" on ".join(_names(case)) for case in missing)
        parts.append(f"Not computed yet: {names}.\n")
    PAGE.write_text("\n".join(part for part in parts if part), encoding="utf-8")


_HEAD = """# Pod plans

Written by `python benchmarks/pod_plans.py` out of what `florence2-jax plan` says. **Estimates of a
compiler: nothing on this page ran on a TPU.** The train step of each run file is compiled ahead of
time by the TPU compiler (libtpu) for the whole slice, and its program is read: every operation, how
often its loops run, what it moves, what it sends.

MFU = useful FLOPs of a step / (devices x time of a step x bfloat16 peak of a device). Useful FLOPs
are counted from the model's equations (`models/flops.py`): an image once, its prompts and targets
each, three times the forward pass; what is computed again in the backward pass is not useful. The
time of a step has three estimates:

- **RL**: each operation takes the longer of its HBM traffic and its matrix products, and
  collectives hide behind computation. Optimistic.
- **RL + collectives**: the same, with no collective hidden: bytes sent over bandwidth, no latency.
- **cyc**: the cycles that the compiler itself expects, without collectives. Pessimistic where
  memory is the limit, and it knows nothing of Pallas kernels; good for ranking.

Plans that were not compiled to the end stop once every operation is scheduled and every buffer has
its place: they have no cycles, and nothing shows that code can be generated for them.

Memory is what the compiler allotted, of what it lets a program use. Cores per host suppose 8 ms of
processor time per image (`--host-ms`; `benchmarks/input.py` measures yours).
"""

_SCALING_HEAD = f"""## Weak scaling

`{SCALING_CONFIG}` on v5e with {IMAGES_PER_CHIP} images per chip; 1,024 and 4,096 chips are 4 and 16
slices of 256, joined by the data-centre network (DCN).
"""

_FIT = "config|on|mesh|images per chip|remat|GiB needed|of|fits|planned in s|to the end".split("|")
_SPEED = (
    "config|on|RL ms|MFU|RL + collectives ms|MFU|cyc ms|MFU|useful GFLOP/image|executed / useful|"
    "HBM GB/image|ICI ms|DCN ms"
).split("|")
_RUN = (
    "config|on|images/s/chip|images/s|annotations/s|images/s/host|cores/host|checkpoint GB|MB/s|"
    "hours|chip-hours"
).split("|")
_SCALE = "chips|RL ms|RL + collectives ms|ICI MB per chip|DCN MB per chip|ICI ms|DCN ms".split("|")


def _names(case: Case) -> list[str]:
    changes = [f"`{override}`" for override in case.overrides]
    return [", ".join([case.config.replace("_", " "), *changes]), str(case.topology)]


def _fit(case: Case, report: Mapping[str, Any]) -> list[str]:
    if "error" in report:
        return [*_names(case), *[""] * 5, "no, see below", "", ""]
    memory = report["memory"]
    return [
        *_names(case),
        " x ".join(str(size) for size in report["mesh"].values()),
        number(report["batch_size"] / report["chips"]),
        report["remat"],
        number(memory["needed"] / GIB) if "needed" in memory else "more",
        number(memory["available"] / GIB),
        "yes" if report["fits"] else "no, see below",
        number(report["compile_s"]),
        "yes" if report["has_code"] else "",
    ]


def _speed(case: Case, report: Mapping[str, Any]) -> list[str]:
    columns = []
    for name in ("RL", "RL + collectives", "cyc"):
        one = report["estimates"].get(name)
        columns += [number(one["step_ms"]), f"{one['mfu']:.2f}"] if one else ["", ""]
    flops = report["flops"]
    return [
        *_names(case),
        *columns,
        number(flops["useful_per_image"] / 1e9),
        f"{flops['executed_over_useful']:.2f}",
        number(report["traffic"]["hbm_bytes_per_image"] / 1e9),
        *(number(1000 * report["network_s"][network]) for network in ("ici", "dcn")),
    ]


def _whole_run(case: Case, report: Mapping[str, Any]) -> list[str]:
    rates, saving = report["estimates"]["RL + collectives"], report["checkpoint"]
    names = "images_per_s_per_chip images_per_s annotations_per_s images_per_s_per_host"
    return [
        *_names(case),
        *(number(rates[name]) for name in (*names.split(), "cores_per_host")),
        number(saving["bytes"] / 1e9),
        number(saving["bytes_per_s"] / 1e6),
        number(rates["hours"]),
        number(rates["chip_hours"]),
    ]


def _scale(case: Case, report: Mapping[str, Any]) -> list[str]:
    rates, sent = report["estimates"], _sent_mb(report)
    return [
        f"{case.topology.num_chips:,}",
        number(rates["RL"]["step_ms"]),
        number(rates["RL + collectives"]["step_ms"]),
        *(number(sent[network]) for network in ("ici", "dcn")),
        *(number(1000 * report["network_s"][network]) for network in ("ici", "dcn")),
    ]


def _sent_mb(report: Mapping[str, Any]) -> dict[str, float]:
    return {
        network: sum(c["bytes"] for c in report["collectives"] if c["network"] == network) / 1e6
        for network in ("ici", "dcn")
    }


def _versions(reports: Sequence[tuple[Case, Mapping[str, Any]]]) -> str:
    used = {
        ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        for _, report in reports
        if "versions" in report
    }
    return f"Compiled by {' and '.join(sorted(used))}.\n" if used else ""


def _problems(reports: Sequence[tuple[Case, Mapping[str, Any]]]) -> str:
    """What did not fit or was not computed, a line each."""
    lines = []
    for case, report in reports:
        name = f"{case.config} on {case.topology}"
        if "error" in report:
            lines.append(f"- {name}: {report['error']}")
            continue
        if remedies := report.get("remedies"):
            flags = " or ".join(f"`{flag}`" for flag in remedies["overrides"])
            lines.append(f"- {name} fits with {flags}.")
        if report["fits"]:
            missing = {what: why for what, why in report["missing"].items() if "--quick" not in why}
            lines += [f"- {name}: {what}: {why}" for what, why in missing.items()]
    return "\n".join([*lines, ""]) if lines else ""


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    right = [":---" if name in ("config", "on", "mesh") else "---:" for name in header]
    lines = [header, right, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# The plot: two panels over the number of chips, logarithmic.

_WIDTH, _HEIGHT, _LEFT, _TOP, _SIDE = 760, 300, 60, 40, 290


def draw(points: Sequence[tuple[Case, Mapping[str, Any]]]) -> str:
    """Time of a step and megabytes sent per chip against the number of chips, as SVG."""
    chips = [case.topology.num_chips for case, _ in points]
    times = [
        ("RL", [r["estimates"]["RL"]["step_ms"] for _, r in points]),
        ("RL + collectives", [r["estimates"]["RL + collectives"]["step_ms"] for _, r in points]),
    ]
    sent = [
        (network.upper(), [_sent_mb(report)[network] for _, report in points])
        for network in ("ici", "dcn")
    ]
    panels = _panel(0, "estimated time of a step, ms", chips, times)
    panels += _panel(380, "sent by a chip in a step, MB", chips, sent)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img" '
        'aria-label="time of a step and bytes sent, by number of chips">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>{panels}</svg>\n'
    )


def _panel(
    x0: int, title: str, chips: Sequence[int], series: Sequence[tuple[str, Sequence[float]]]
) -> str:
    top = max(1e-9, *(value for _, values in series for value in values)) * 1.15
    bottom, span = _HEIGHT - 45, math.log2(chips[-1] / chips[0])

    def x(count: int) -> float:
        return x0 + _LEFT + _SIDE * math.log2(count / chips[0]) / span

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * value / top

    axes = f"M{x0 + _LEFT} {_TOP}V{bottom}H{x0 + _LEFT + _SIDE}"
    parts = [
        f'<text x="{x0 + _LEFT}" y="20" font-weight="600" fill="#222">{title}</text>',
        f'<path d="{axes}" fill="none" stroke="#999"/>',
        f'<text x="{x0 + _LEFT + _SIDE / 2}" y="{_HEIGHT - 8}" text-anchor="middle" '
        'fill="#555">chips</text>',
    ]
    parts += [
        f'<text x="{x(count):.1f}" y="{bottom + 18}" text-anchor="middle" fill="#555">{count:,}'
        "</text>"
        for count in chips
    ]
    parts += [
        f'<text x="{x0 + _LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#555">'
        f"{number(value)}</text>"
        for value in (0, top / 2, top)
    ]
    for k, (name, values) in enumerate(series):
        colour = ("#2563eb", "#c2410c")[k]
        line = " ".join(f"{x(c):.1f},{y(v):.1f}" for c, v in zip(chips, values, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{x0 + _LEFT + _SIDE}" y="{_TOP + 4 + 16 * k}" text-anchor="end" '
            f'fill="{colour}">{name}</text>'
        )
    return "".join(parts)


if __name__ == "__main__":
    main()

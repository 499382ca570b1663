# SPDX-License-Identifier: Apache-2.0
"""What is known about a model besides its weights, and the model card that tells it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2_jax.conversion.files import read_json
from florence2_jax.conversion.load import is_workdir
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.florence2 import num_parameters
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.goodput import read_goodput
from florence2_jax.training.ledger import FILE as BOOKS
from florence2_jax.version import __version__

METRICS, README = "metrics.json", "README.md"


def facts(folder: Path) -> dict[str, Any]:
    """What a workdir or folder says about where its weights come from.

    Returns:
        JSON-able; `licence` (of the weights, "" where nobody has said it), and what there is of
        `step`, `run` (the run file's values), `seconds` and `starts` of its training, `converted`
        (the facts of what a workdir was converted from) and `metrics` (its `metrics.json`).
    """
    if not is_workdir(folder):
        return {"name": folder.name, "licence": _licence(folder / README)}
    known: dict[str, Any] = {"name": folder.name}
    if (folder / workdir_lib.CONFIG).is_file():
        values = workdir_lib.load_config(folder)
        known["converted" if "converted" in values else "run"] = values.get("converted", values)
    with Checkpoints(folder / workdir_lib.CHECKPOINTS) as checkpoints:
        known["step"] = checkpoints.latest_step()
    if (folder / BOOKS).is_file():
        books = read_goodput(folder)
        known["starts"] = len(books.attempts)
        known["seconds"] = sum(books.seconds.values()) - books.seconds["down"]
    if (folder / METRICS).is_file():
        known["metrics"] = read_json(folder / METRICS)
    known["licence"] = known.get("converted", {}).get("licence", "")
    return known


def model_card(config: Florence2Config, known: Mapping[str, Any], *, layout: str) -> str:
    """A README.md in the form of the hub: a header that it reads, then what a person wants to know.

    Args:
        config: of the model.
        known: from `facts`; `title` before `name`, where there is one.
        layout: "hf" or "microsoft".
    """
    licence = known.get("licence") or "other"
    library = "transformers" if layout == "hf" else "florence2_jax"
    width, height = config.image_size
    rows = {
        "parameters": f"{num_parameters(config):,}",
        "image size": f"{width} x {height} px, {config.num_image_tokens} image tokens",
        "positions": config.text.max_positions,
        "vocabulary": f"{config.text.vocab_size:,} rows",
        "made by": f"florence2_jax {__version__} from `{known.get('name', '')}`",
    } | _run_rows(known)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    use = _USE_HF if layout == "hf" else _USE_MICROSOFT
    stated = "" if known.get("licence") else _NO_LICENCE
    return (
        f"---\nlicense: {licence}\nlibrary_name: {library}\npipeline_tag: image-text-to-text\n"
        "tags:\n- florence2\n- vision\n---\n\n"
        f"# {known.get('title') or known.get('name', 'Florence-2')}\n\n"
        "A Florence-2 model ([arXiv:2311.06242](https://arxiv.org/abs/2311.06242)): an image and a "
        f"task's prompt in, text with locations out.\n\n| | |\n|---|---|\n{table}\n\n{stated}{use}"
        f"{_metrics(known.get('metrics'))}"
        f"{_values('Run file', _without_folders(known.get('run')))}"
        f"{_values('Model', config.to_dict())}"
    )


_NO_LICENCE = (
    "The licence of these weights is not recorded: state it here before you publish them.\n\n"
)
_USE_HF = """## Use

```python
from transformers import AutoProcessor, Florence2ForConditionalGeneration

model = Florence2ForConditionalGeneration.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
inputs = processor(text="<OD>", images=image, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=512)
text = processor.batch_decode(ids, skip_special_tokens=False)[0]
answer = processor.post_process_generation(text, task="<OD>", image_size=image.size)
```

"""
_USE_MICROSOFT = """## Use

The files are laid out as in microsoft/Florence-2-large, whose code (`trust_remote_code=True`, an
older transformers) reads them; it takes square images only.

"""


def _run_rows(known: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    run, converted = known.get("run", {}), known.get("converted", {})
    if converted:
        rows["converted from"] = f"`{converted.get('source', '')}`"
    if run:
        rows["steps"] = f"{known.get('step', 0):,}"
        rows["seed"] = run.get("seed", "")
        if "seconds" in known:
            rows["time"] = f"{known['seconds'] / 3600:.1f} h in {known['starts']} start(s)"
        inputs = run.get("input", {})
        name = Path(str(inputs.get("records", ""))).name
        rows["data"] = f"`{name}`, split `{inputs.get('split', 'train')}`"
        rows["batch size"] = inputs.get("batch_size", "")
        tasks = inputs.get("tasks", {"all": 1.0})
        rows["tasks"] = ", ".join(f"{task} {weight:g}" for task, weight in tasks.items())
        optimizer = run.get("optimizer", {})
        rows["peak learning rate"] = optimizer.get("peak_lr", "")
        if run.get("init", {}).get("workdir"):
            rows["started from"] = f"`{Path(run['init']['workdir']).name}`"
    return rows


def _without_folders(values: Any) -> Any:
    """Paths as their last part: where a run's files lay is nobody's business."""
    if isinstance(values, Mapping):
        return {key: _without_folders(value) for key, value in values.items()}
    if isinstance(values, str) and "/" in values:
        return Path(values).name
    return values


def _metrics(report: Any) -> str:
    """What `evaluate --json WORKDIR/metrics.json` left there; anything else as it is."""
    if not isinstance(report, Mapping) or "tasks" not in report:
        return _values("Metrics", report)
    lines = []
    for task in report["tasks"]:
        name, value = next(iter(task["metrics"].items()))
        low, high = task["intervals"].get(name) or (None, None)
        numbers = (_number(x) for x in (value, low, high, task["blind"].get(name)))
        lines.append(" | ".join((task["task"], name, *numbers, f"{task['num_examples']:,}")))
    rows = "\n".join(f"| {line} |" for line in lines)
    return (
        f"## Metrics\n\nOf `florence2-jax evaluate` on `{Path(str(report['records'])).name}`, "
        f"split `{report['split']}`: {report['num_records']:,} records, at most "
        f"{report['per_record']} questions a record and task (0: all). The interval is over "
        "resampled records; `blind` is the same model with the image of another record.\n\n"
        "| task | metric | model | from | to | blind | questions |\n"
        f"|---|---|---:|---:|---:|---:|---:|\n{rows}\n\n"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _values(title: str, values: Any) -> str:
    if not values:
        return ""
    return f"## {title}\n\n```json\n{json.dumps(values, indent=1, ensure_ascii=False)}\n```\n\n"


def _licence(readme: Path) -> str:
    """The licence that a card's header states."""
    if not readme.is_file():
        return ""
    header = re.match(
        r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.S
    )
    stated = re.search(r"^license:\s*([\w.-]+)\s*$", header[1] if header else "", re.M)
    return "" if stated is None or stated[1] == "other" else stated[1]

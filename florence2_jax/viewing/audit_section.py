# SPDX-License-Identifier: Apache-2.0
"""The part of a round's page that tells how good its labels are on the frozen split."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from florence2_jax.viewing import curves, plots
from florence2_jax.viewing.engine_tables import figure_text, head_cells, table
from florence2_jax.viewing.page import escape, plural

_RATIOS = (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
_MAX_CLASSES = 60  # Rows of the table.


def audit_section(audits: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What `RoundAudit.to_json` says of rounds, in their order: curves, then recall by class."""
    rounds = [audit["round"] for audit in audits]
    kinds = list(dict.fromkeys(kind for audit in audits for kind in audit["kinds"]))
    judged = [kind for kind in kinds if audits[-1]["kinds"].get(kind, {}).get("num_true")]
    yield (
        f"<h2>On the frozen split</h2><p>{plural(audits[-1]['num_images'], 'image')} that people "
        f"judge and that the loop neither annotates nor learns from.{_open(kinds, judged)}</p>"
    )
    if not judged:
        return
    drawn = []
    for kind in judged:
        rows = [audit["kinds"].get(kind, {}) for audit in audits]
        lines = [(name, [row.get(key) for row in rows]) for name, key in _RATIOS]
        note = f"{plural(rows[-1].get('num_true', 0), 'true annotation')} in the last round."
        drawn.append(
            plots.plot(kind.replace("_", " ").capitalize(), note, curves.curves(rounds, lines))
        )
    tail = [("recall", [audit["tail"]["recall"] for audit in audits])]
    share, names = audits[-1]["tail_share"], audits[-1]["tail_classes"]
    classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
    note = f"{classes} of under {share:.0%} of the true boxes each."
    drawn.append(plots.plot("The tail", note, curves.curves(rounds, tail)))
    entropy = [
        (name, [audit[f"{key}_bits"] for audit in audits])
        for name, key in (("labels", "label_entropy"), ("truth", "true_label_entropy"))
    ]
    entropy.append(("divergence", [audit["label_divergence_bits"] for audit in audits]))
    note = "Bits; labels that collapse lose entropy and diverge from the truth."
    drawn.append(plots.plot("Spread of the labels", note, curves.curves(rounds, entropy)))
    drawn += [_calibration(kind, one) for kind, one in audits[-1]["calibration"].items()]
    yield f'<div class="plots">{"".join(drawn)}</div>'
    yield _classes(audits)


def _open(kinds: Sequence[str], judged: Sequence[str]) -> str:
    """Says of which kinds nobody has named anything there, so that nothing can be measured."""
    names = [kind.replace("_", " ") for kind in kinds if kind not in judged]
    return f" Nobody has named any of these there yet: {', '.join(names)}." if names else ""


def _calibration(kind: str, one: Mapping[str, Any]) -> str:
    points = [(row["score"], row["accuracy"], row["number"]) for row in one["bins"]]
    scores = plural(one["number"], "score")
    note = f"Last round; expected calibration error {one['ece']:.3f} of {scores}."
    drawing = plots.reliability(points, x="score", y="share that is right")
    return plots.plot(f"Scores of {kind.replace('_', ' ')}", note, drawing)


def _classes(audits: Sequence[Mapping[str, Any]]) -> str:
    """Recall of the classes over rounds, the rarest first; precision of the last round."""
    last = audits[-1]["classes"]
    names = sorted(last, key=lambda name: (last[name]["num_true"], name))[:_MAX_CLASSES]
    head = head_cells(
        "Class, rarest first", "#true", *(f"#recall {a['round']}" for a in audits), "#precision"
    )
    rows = []
    for name in names:
        recalls = (audit["classes"].get(name, {}).get("recall") for audit in audits)
        cells = "".join(f'<td class="num">{figure_text(value)}</td>' for value in recalls)
        rows.append(
            f'<tr><td>{escape(name)}</td><td class="num">{last[name]["num_true"]:,}</td>{cells}'
            f'<td class="num">{figure_text(last[name]["precision"])}</td></tr>'
        )
    return table(head, rows)

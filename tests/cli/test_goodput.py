# SPDX-License-Identifier: Apache-2.0
"""`florence2-jax goodput`: the table and its JSON."""

import json

from florence2_jax.cli.goodput import parser


def write_books(folder) -> None:
    """A start of 10 s that was killed, 5 s of nothing, and one of 10 s that did 2 steps again."""
    lines = [
        dict(attempt="a", time=100, event="start"),
        dict(attempt="a", time=102, event="time", steps=[0, 0], seconds=dict(init=2)),
        dict(attempt="a", time=102, event="resume", step=0),
        dict(attempt="a", time=110, event="time", steps=[0, 4], seconds=dict(step=8)),
        dict(attempt="b", time=115, event="start"),
        dict(attempt="b", time=117, event="time", steps=[0, 0], seconds=dict(init=2)),
        dict(attempt="b", time=117, event="resume", step=2),
        dict(attempt="b", time=125, event="time", steps=[2, 6], seconds=dict(step=6, save=2)),
        dict(attempt="b", time=125, event="end", reason="done"),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "goodput.jsonl").write_text(text + '{"attempt": "b", "ti')


def test_the_table_says_where_the_time_went(tmp_path, capsys):
    write_books(tmp_path)
    args = parser().parse_args([str(tmp_path)])
    report = args.run(args)
    assert report["goodput"] == 10 / 25 and report["lost_steps"] == 2
    assert report["seconds"]["lost"] == 4 and report["seconds"]["down"] == 5
    assert sum(report["shares"].values()) == 1.0
    assert report["attempts"][0]["end"] == "" and report["attempts"][1]["end"] == "done"
    json.dumps(report)
    text = capsys.readouterr().out
    for part in ("goodput 40.0% of 25 s, 2 start(s)", "(killed)", "0-4", "2-6", "16.0%"):
        assert part in text
    assert "1 line(s) could not be read" in text

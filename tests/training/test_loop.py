# SPDX-License-Identifier: Apache-2.0
"""A run from its first step to its last, and every way to start it wrongly."""

import copy
import dataclasses
import functools
import io
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from florence2_jax.cli.main import main
from florence2_jax.data.texts import store_texts
from florence2_jax.records.store import RecordStore
from florence2_jax.records.writing import Plan, write_store
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training import loop
from florence2_jax.training.checkpoint import Checkpoints
from florence2_jax.training.saved_step import saved_steps
from florence2_jax.typing import UserError


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def losses(workdir) -> dict[int, float]:
    """Step -> loss, the last one written for each step."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def params_of(workdir, run):
    saved = []
    loop.run(run, workdir, console=quiet(), hooks=[lambda n, s, r: saved.append(s)])
    return saved


def test_a_stopped_run_goes_on_to_the_same_losses(small_run, tmp_path):
    states = []
    keep = [lambda number, state, reporter: states.append(state)]
    straight = loop.run(small_run, tmp_path / "a", console=quiet(), hooks=keep)
    first = loop.run(small_run, tmp_path / "b", console=quiet(), stop_after=3)
    assert (straight["step"], first["step"]) == (6, 3)
    console = quiet()
    loop.run(small_run, tmp_path / "b", console=console)
    assert "resuming after step 3" in console.file.getvalue()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a").keys() == {1, 2, 3, 4, 5, 6}
    restored = []
    for name in "ab":
        with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            restored.append(checkpoints.restore(jax.eval_shape(lambda: states[-1])))
    jax.tree.map(np.testing.assert_array_equal, *restored)


def test_a_second_interrupt_aborts(small_run, tmp_path):
    def strike(step, state, reporter):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.run(small_run, tmp_path / "a", console=quiet(), hooks=[strike])


def test_sigterm_ends_a_run_after_its_step_saved_with_a_status_of_its_own(
    small_run, tmp_path, monkeypatch
):
    run_file = tmp_path / "run.py"
    lines = ("from ml_collections import ConfigDict", "def get_config():")
    run_file.write_text("\n".join([*lines, f"    return ConfigDict({small_run})"]))

    def strike(step, batch):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)
        return batch

    console, before = quiet(), signal.getsignal(signal.SIGTERM)
    run = functools.partial(loop.run, console=console, batch_hooks=[strike])
    monkeypatch.setattr(loop, "run", run)
    with pytest.raises(SystemExit) as end:
        main(["train", "--config", str(run_file), "--workdir", str(tmp_path / "a")])
    assert end.value.code == 75
    assert "stopped after step 4" in console.file.getvalue()
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(tmp_path / "a" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 4


def test_a_finished_run_has_nothing_to_do(small_run, tmp_path):
    loop.run(small_run, tmp_path / "a", console=quiet())
    console = quiet()
    assert loop.run(small_run, tmp_path / "a", console=console)["step"] == 6
    assert "nothing to do: step 6 of 6 is done" in console.file.getvalue()


def test_the_terminal_and_the_workdir_tell_everything(small_run, tmp_path):
    console = quiet()
    loop.run(small_run, tmp_path / "a", console=console)
    text = console.file.getvalue()
    for part in ("step 6/6", "loss ", "images/s", "annotations/s", "data wait", "left 0:00:00"):
        assert part in text
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files >= {"config.json", "model.json", "tokenizer", "environment.json", "checkpoints"}
    assert files >= {"metrics.jsonl", "tensorboard"}
    environment = json.loads((tmp_path / "a" / "environment.json").read_text().splitlines()[0])
    assert environment["packages"]["jax"] == jax.__version__
    row = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["images_per_s"] > 0 and 0 <= row["data_wait_share"] <= 1
    assert 0 < row["padding_share"] < 1 and row["substituted_records"] == 0
    assert any(name.startswith("loss/") for name in row)


def test_training_lowers_the_loss(small_run, tmp_path):
    run = small_run | dict(total_steps=60, log=dict(every_steps=20))
    run["checkpoint"] = dict(every_steps=60)
    run["optimizer"] = dict(peak_lr=3e-3, warmup_steps=5)
    loop.run(run, tmp_path / "a", console=quiet())
    history = losses(tmp_path / "a")
    assert history[60] < history[20] - 1  # Nats per token; the first report is already trained.


def test_a_run_may_start_from_another_s_parameters(small_run, tmp_path):
    loop.run(small_run, tmp_path / "a", console=quiet())
    run = copy.deepcopy(small_run) | dict(init=dict(workdir=str(tmp_path / "a")))
    run["optimizer"] = dict(peak_lr=1e-9, warmup_steps=2)
    run["tokenizer"] = dict(path=str(tmp_path / "a" / "tokenizer"))
    console = quiet()
    loop.run(run, tmp_path / "b", console=console)
    assert f"starting from {tmp_path / 'a'}" in console.file.getvalue()
    assert losses(tmp_path / "b")[1] < losses(tmp_path / "a")[1]
    run["init"] = dict(workdir=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"init\.workdir: .* holds no checkpoints"):
        loop.run(run, tmp_path / "c", console=quiet())


def test_steps_may_differ_in_the_size_of_their_images(small_run, tmp_path):
    run = copy.deepcopy(small_run)
    run["input"]["image_sizes"] = {"64x64": 1.0, "96x64": 1.0}
    loop.run(run, tmp_path / "a", console=quiet())
    history = losses(tmp_path / "a")
    assert history.keys() == {1, 2, 3, 4, 5, 6} and np.isfinite(list(history.values())).all()
    plain = loop.run(small_run, tmp_path / "b", console=quiet())
    assert losses(tmp_path / "b")[1] == history[1]  # The first step has the model's own size.
    assert losses(tmp_path / "b")[6] != history[6] and plain["step"] == 6


def test_a_workdir_of_another_run_is_refused(small_run, tmp_path):
    loop.run(small_run, tmp_path / "a", console=quiet(), stop_after=1)
    other = copy.deepcopy(small_run)
    other["optimizer"]["peak_lr"] = 5e-3
    with pytest.raises(UserError, match=r"another run: optimizer\.peak_lr is 0\.001 there and"):
        loop.run(other, tmp_path / "a", console=quiet())
    small_run["log"] = dict(every_steps=3)  # How often a run speaks is not what it learns.
    loop.run(small_run, tmp_path / "a", console=quiet(), stop_after=2)


def test_a_url_is_no_workdir(small_run):
    with pytest.raises(UserError, match="a gs URL is no directory; mount the bucket"):
        loop.run(small_run, Path("gs://bucket/run"), console=quiet())
    assert not Path("gs:").exists()


def test_a_folder_of_something_else_is_refused(small_run, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        loop.run(small_run, tmp_path, console=quiet())


def test_a_checkpoint_of_another_size_is_refused(small_run, tmp_path):
    loop.run(small_run, tmp_path / "a", console=quiet(), stop_after=1)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["model"]["text"]["mlp_dim"] = small_run["model"]["text"]["mlp_dim"] = 96
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"of another model: .*fc1/bias is float32\[64\] there, float32\[96\]"
    ):
        loop.run(small_run, tmp_path / "a", console=quiet())


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("mesh", "fsdp", 16, "needs 16 devices, but 8 are present"),
        ("input", "records", "/nowhere", "/nowhere: no such directory"),
        ("input", "split", "test", "no split 'test'; there are"),
        ("input", "batch_size", 9, "do not divide by the 8 data shards"),
        ("tokenizer", "path", "/nowhere", "holds no tokenizer.model"),
    ],
)
def test_what_cannot_run_stops_before_the_first_step(
    small_run, tmp_path, section, key, value, message
):
    run = copy.deepcopy(small_run)
    if section == "tokenizer":
        run[section] = {}
    run.setdefault(section, {})[key] = value
    with pytest.raises(UserError, match=message):
        loop.run(run, tmp_path / "a", console=quiet())
    assert not (tmp_path / "a" / "checkpoints").exists()


def kept(record, ledger):
    return record


def test_damaged_records_do_not_stop_a_run(small_run, scenes, tmp_path):
    source = RecordStore(scenes, "train")
    records = [source[i] for i in range(24)]
    for i in (5, 6, 17):
        records[i] = dataclasses.replace(records[i], image=records[i].image[:300])
    write_store(tmp_path / "store", Plan(units={"train": records}, make=kept, job={"test": 4}))
    small_run["input"]["records"] = str(tmp_path / "store")
    report = loop.run(small_run, tmp_path / "a", console=quiet())
    assert report["step"] == 6
    lines = (tmp_path / "a" / "set_aside.jsonl").read_text().splitlines()
    assert {json.loads(line)["index"] for line in lines} == {5, 6, 17}


def test_a_loss_that_is_no_number_stops_the_run(small_run, tmp_path):
    small_run["optimizer"] = dict(peak_lr=1e30, warmup_steps=0)
    with pytest.raises(UserError, match=r"step \d: the loss is .*with a lower optimizer\.peak_lr"):
        loop.run(small_run, tmp_path / "a", console=quiet())


def test_a_step_that_is_skipped_changes_nothing_and_is_told(small_run, tmp_path):
    def break_a_target(number, batch):
        if number == 4:
            batch["target_ids"][0, 0, 1] = 10**6  # No such token: the loss is no number.
        return batch

    def keep(number, state, reporter):
        states[number] = jax.device_get(state.params)

    states, console = {}, quiet()
    small_run["optimizer"] = dict(peak_lr=1e-3, warmup_steps=2, skip_norm=1e6)
    hooks = dict(hooks=[keep], batch_hooks=[break_a_target])
    assert loop.run(small_run, tmp_path / "a", console=console, **hooks)["step"] == 6
    jax.tree.map(np.testing.assert_array_equal, states[3], states[4])
    assert not np.array_equal(*(states[i]["text"]["shared"]["embedding"] for i in (4, 5)))
    assert "step 4: not finite: loss nan, gradient norm nan; it changed nothing; see florence2" in (
        console.file.getvalue()
    )
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    skipped = {row["step"]: row.get("skipped_steps") for row in map(json.loads, lines)}
    assert [skipped[step] for step in (3, 4, 5)] == [0, 1, 0]
    assert [step.number for step in saved_steps(tmp_path / "a" / "checkpoints")] == [2, 4, 6]


def test_a_run_starts_from_bart(small_run, scenes, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import BartConfig, BartModel

    tokenizer = Tokenizer.train(store_texts(RecordStore(scenes, "train")), vocab_size=400)
    tokenizer.save(tmp_path / "tokenizer")
    sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64)
    sizes |= dict(decoder_ffn_dim=64, encoder_attention_heads=2, decoder_attention_heads=2)
    num_base = tokenizer.first_location_id - 4
    torch.manual_seed(0)
    for name, rows in (("bart", num_base), ("other", num_base + 1)):
        model = BartModel(BartConfig(**sizes, vocab_size=rows, max_position_embeddings=16))
        model.save_pretrained(tmp_path / name)

    run = copy.deepcopy(small_run) | dict(tokenizer=dict(path=str(tmp_path / "tokenizer")))
    run["init"] = dict(bart=str(tmp_path / "other"))
    with pytest.raises(UserError, match="the run's tokenizer"):
        loop.run(run, tmp_path / "a", console=quiet())
    assert not (tmp_path / "a").exists(), "a run that cannot start claims nothing"

    run["init"] = dict(bart=str(tmp_path / "bart"))
    console, saved = quiet(), []
    loop.run(
        run, tmp_path / "a", console=console, stop_after=1, hooks=[lambda n, s, r: saved.append(s)]
    )
    assert "starting from" in console.file.getvalue()
    theirs = BartModel.from_pretrained(tmp_path / "bart").encoder.layers[0].fc1.weight
    ours = saved[0].params["text"]["encoder"]["layers"][0]["ffn"]["fc1"]["kernel"]
    # One step of Adam at half of the peak rate moves a weight by 5e-4 at most; they are 2e-2.
    np.testing.assert_allclose(ours, theirs.detach().numpy().T, rtol=0, atol=2e-3)

    shutil.rmtree(tmp_path / "bart")  # Needed once.
    assert loop.run(run, tmp_path / "a", console=quiet(), stop_after=2)["step"] == 2
    run["init"] |= dict(workdir=str(tmp_path / "a"))
    with pytest.raises(UserError, match=r"init\.workdir gives every parameter"):
        loop.run(run, tmp_path / "c", console=quiet())

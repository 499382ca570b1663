# SPDX-License-Identifier: Apache-2.0
"""Frozen parts, rates by name, averages, early ends: what is asked for, and nothing else."""

import copy
import functools
import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from florence2_jax.conversion.load import load_pretrained
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.lora import LoraConfig
from florence2_jax.training import loop
from florence2_jax.training import workdir as workdir_lib
from florence2_jax.training.config import RunConfig
from florence2_jax.training.early_stopping import EarlyStopping, EarlyStoppingConfig
from florence2_jax.training.folders import store_of
from florence2_jax.training.job import open_mixture
from florence2_jax.training.optimizer import scale_by_path
from florence2_jax.training.patterns import chosen, whole
from florence2_jax.training.saved_step import saved_steps
from florence2_jax.training.state import fresh_state, init_params, model_graph
from florence2_jax.training.step import train_step
from florence2_jax.training.trained import ALL, EmaConfig, Trained, merge_adapters, number_of
from florence2_jax.training.trees import by_path, combine, partition
from florence2_jax.typing import UserError

FREEZE = ("image/*", "text/encoder/*", "text/shared/*")
DECAY = 0.5


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def tuned(small_run, **changes) -> dict:
    run = copy.deepcopy(small_run) | dict(
        freeze=FREEZE,
        ema=dict(decay=DECAY),
        early_stopping=dict(metric="val/loss", patience=2),
        **changes,
    )
    run["checkpoint"] |= dict(keep_best=1, best_metric="val/loss", keep=1)
    run["input"]["num_prompts"] = 1
    run["optimizer"] |= dict(lr_factors={"text/decoder/*": 0.5})
    return run


def validate(number, state, reporter):
    """A hook whose metric is best at step 2 and worse at 4 and 6."""
    if number % 2 == 0:
        reporter.report(number, {"val/loss": {2: 1.0, 4: 3.0, 6: 2.0, 8: 0.5}[number]})


@pytest.fixture
def config(small_run) -> Florence2Config:
    text = small_run["model"]["text"] | dict(vocab_size=300)
    return Florence2Config.create(**small_run["model"] | dict(text=text))


@pytest.fixture
def shapes(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def test_a_run_trains_averages_and_ends_as_it_is_told(small_run, tmp_path):
    states, console = [], quiet()
    keep = [lambda number, state, reporter: states.append(jax.device_get(state)), validate]
    run = tuned(small_run, total_steps=8)
    report = loop.run(run, tmp_path / "a", console=console, hooks=keep)
    assert (report["step"], report["stopped"]) == (6, False)
    said = console.file.getvalue()
    assert "stopped early: val/loss was best (1) at step 2, and 2 reports were no better" in said

    first, last = by_path(states[0].params), by_path(states[-1].params)
    frozen = {path for path in first if path.startswith(("image/", "text/encoder/", "text/sh"))}
    assert {path for path in first if np.array_equal(first[path], last[path])} == frozen
    total, held = number_of(states[0].params), sum(first[path].size for path in frozen)
    assert f"trained parameters: {total - held:,} of {total:,}; frozen: {held:,}" in said
    assert number_of([x for x in jax.tree.leaves(states[-1].opt_state) if x.ndim]) == 2 * (
        total - held
    )

    mean = by_path(states[0].ema)
    assert mean.keys() == first.keys() - frozen
    for number, state in enumerate(states[1:], 1):
        decay = min(DECAY, (1 + number) / (10 + number))
        now = by_path(state.params)
        mean = {path: decay * x + (1 - decay) * now[path] for path, x in mean.items()}
    for path, x in by_path(states[-1].ema).items():
        np.testing.assert_allclose(x, mean[path], rtol=0, atol=1e-6)
    for ema, wanted in ((True, states[-1].ema), (False, states[-1].params)):
        found = by_path(load_pretrained(tmp_path / "a", ema=ema).params)
        wanted = by_path(combine(states[-1].params, wanted))
        assert all(np.array_equal(found[path], wanted[path]) for path in wanted)

    steps = {step.number: step for step in saved_steps(tmp_path / "a" / "checkpoints")}
    assert steps.keys() == {2, 6}, "the best and the newest"
    assert steps[2].items() == ("params", "training", "ema")
    assert steps[2].manifest()["format"] == 1
    console = quiet()
    report = loop.run(run, tmp_path / "a", console=console, hooks=keep)
    assert (report["step"], report["stopped"]) == (6, False)
    assert "nothing to do: stopped early" in console.file.getvalue()

    part = loop.run(run, tmp_path / "b", console=quiet(), hooks=[validate], stop_after=3)
    assert part["step"] == 3
    resumed = loop.run(run, tmp_path / "b", console=quiet(), hooks=[keep[0], validate])
    assert resumed["step"] == 6, "what was reported before the interruption counts"
    jax.tree.map(np.testing.assert_array_equal, states[-1], states[5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(freeze=("imag/*",)), r"freeze: 'imag/\*' matches no name; did you mean 'image/\*'"),
        (dict(freeze="image/*"), r"freeze: 'image/\*' is no list of texts"),
        (dict(freeze=("*",)), "freeze: the patterns match every parameter"),
        (dict(freeze=("image/*",), lora=dict(rank=2)), "freeze: lora.rank freezes the whole model"),
        (dict(lora=dict(rank=2, modules=("*/o_proj",))), r"lora\.modules: '\*/o_proj' .*out_proj"),
        (dict(lora=dict(rank=2, modules=("*/conv1",))), r"lora\.modules: .* matches no name"),
        (dict(lora=dict(rank=-1)), r"lora\.rank: -1 must not be negative"),
        (dict(ema=dict(decay=1.0)), r"ema\.decay: 1\.0 is not in"),
        (dict(early_stopping=dict(patience=2)), r"early_stopping\.metric: with a patience"),
        (dict(init=dict(model="/nowhere/at/all"), model={}), "no such folder, and no hub name"),
    ],
)
def test_what_does_not_fit_stops_before_the_first_step(small_run, tmp_path, change, message):
    small_run |= change
    with pytest.raises(UserError, match=message):
        loop.run(small_run, tmp_path / "a", console=quiet())
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_a_rate_for_what_is_frozen_changes_nothing(small_run, tmp_path):
    small_run["freeze"] = ("image/*",)
    small_run["total_steps"] = 3
    ends = []
    for name, factors in (("a", {}), ("b", {"image/*": 0.1})):
        run = small_run | {"optimizer": small_run["optimizer"] | dict(lr_factors=factors)}
        ends.append(loop.run(run, tmp_path / name, console=quiet())["metrics"]["loss"])
    assert ends[0] == ends[1]


def test_rates_that_fit_nothing_are_refused(small_run, tmp_path):
    small_run["optimizer"] |= dict(lr_factors={"imag/*": 0.1})
    with pytest.raises(UserError, match=r"optimizer\.lr_factors: 'imag/\*' matches no name"):
        loop.run(small_run, tmp_path / "a", console=quiet())
    small_run["optimizer"] |= dict(lr_factors={"text/*": 0.0})
    with pytest.raises(UserError, match=r"lr_factors\.text/\*: 0\.0 is no number above 0"):
        loop.run(small_run, tmp_path / "a", console=quiet())


def test_layers_of_a_scanned_stack_have_names_of_their_own():
    kernel = jax.ShapeDtypeStruct((3, 4, 4), jnp.float32)
    path = "text/decoder/layers/self_attn/q_proj/kernel"
    hits = chosen(["text/decoder/layers/1/*"], {path: kernel}, "x")
    assert hits["text/decoder/layers/1/*"] == {path: [False, True, False]}
    assert whole(["*/layers/[012]/*"], {path: kernel}, "x", remedy="") == {path}
    with pytest.raises(UserError, match=r"match 1 of the 3 layers of .*; name them all"):
        whole(["*/layers/2/*"], {path: kernel}, "freeze", remedy="name them all")


def test_rates_differ_by_name_and_layer_and_factors_multiply():
    tree = {
        "image": {"stages": {0: {"norm": {"scale": jnp.ones(2)}}}},
        "text": {"encoder": {"layers": {"ffn": {"fc1": {"kernel": jnp.ones((2, 3, 1))}}}}},
    }
    factors = {"image/*": 0.5, "*/norm/*": 0.5, "text/encoder/layers/0/*": 0.1}
    scaled, _ = scale_by_path(factors).update(tree, optax.EmptyState())
    np.testing.assert_allclose(scaled["image"]["stages"][0]["norm"]["scale"], 0.25)
    kernel = scaled["text"]["encoder"]["layers"]["ffn"]["fc1"]["kernel"]
    np.testing.assert_allclose(kernel[:, 0, 0], [0.1, 1.0])


def test_nothing_is_computed_for_what_is_frozen(config, shapes):
    """By the operations that JAX hands to the compiler."""
    batch = dict(image=((4, 64, 64, 3), jnp.uint8), prompt_ids=((4, 1, 8), jnp.int32))
    batch |= dict(target_ids=((4, 1, 8), jnp.int32), task_ids=((4, 1), jnp.int32))
    batch = {name: jax.ShapeDtypeStruct(*x) for name, x in batch.items()}
    optimizer = optax.adam(1e-3)

    def flops(trained):
        step = functools.partial(
            train_step,
            graphdef=model_graph(config, trained),
            optimizer=optimizer,
            seed=0,
            trained=trained,
        )
        state = jax.eval_shape(lambda p: fresh_state(p, optimizer, trained), shapes)
        return jax.jit(step).lower(state, batch).cost_analysis()["flops"]

    everything = flops(ALL)
    no_tower = flops(Trained.choose(lambda: shapes, freeze=("image/*",)))
    adapters = flops(
        Trained.choose(lambda: shapes, lora=LoraConfig(rank=1, modules=("text/*_proj",)))
    )
    # Here 0.61 and 0.46. Nothing saved would be 1, and 1/3 is the forward pass alone.
    assert no_tower < 0.65 * everything and adapters < 0.5 * everything


def test_fresh_adapters_change_nothing_and_merged_ones_are_their_product(config, shapes):
    params = init_params(config, jax.random.key(0))
    lora = LoraConfig(rank=2, alpha=4.0, modules=("text/*/q_proj",))
    trained = Trained.choose(lambda: shapes, lora=lora, ema=EmaConfig(decay=0.9))
    state = fresh_state(params, optax.adam(1e-3), trained)
    assert trained.count(state.params, state.adapters) == {
        "trained": 3 * 2 * (32 + 32),
        "frozen": number_of(params),
    }
    before, after = by_path(params), by_path(state.model_params())
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)
    other = jax.tree.map(lambda x: x + 0.1, state.adapters)
    path = "text/decoder/layers/0/cross_attn/q_proj"
    a, b = (
        np.asarray(by_path(other)[f"{path}/{name}"], np.float64) for name in ("lora_a", "lora_b")
    )
    merged = by_path(merge_adapters(combine(params, other), lora.scale))[f"{path}/kernel"]
    np.testing.assert_allclose(merged, before[f"{path}/kernel"] + 2.0 * a @ b, rtol=0, atol=1e-6)


def test_parts_of_a_tree_make_the_tree():
    tree = {"image": {0: {"kernel": 1}, 1: {"kernel": 2}}, "text": {"bias": 3}}
    one, other = partition(tree, lambda path: path.startswith("image/1"))
    assert (one, other) == (
        {"image": {0: {"kernel": 1}}, "text": {"bias": 3}},
        {"image": {1: {"kernel": 2}}},
    )
    assert combine(one, other) == tree


@pytest.mark.parametrize(
    ("values", "options", "best", "is_over"),
    [
        ([3.0, 2.0, 1.0], {}, 3, False),
        ([1.0, 2.0, 1.0], {}, 1, True),  # As good is no better.
        ([1.0, 2.0, 0.5, 0.6], {}, 3, False),
        ([0.1, 0.3, 0.2], dict(higher_is_better=True), 2, False),
        ([0.3, 0.2, 0.2], dict(higher_is_better=True), 1, True),
        ([1.0, 0.99, 0.98], dict(min_change=0.1), 1, True),
        ([float("nan"), float("nan")], {}, None, True),
        ([5.0, 5.0, 5.0], dict(patience=0), 1, False),
    ],
)
def test_a_run_ends_when_its_metric_gets_no_better(values, options, best, is_over):
    stopping = EarlyStopping(EarlyStoppingConfig(**dict(metric="m", patience=2) | options))
    for step, value in enumerate(values, 1):
        stopping.note(step, {"m": value, "other": 0.0})
    stopping.note(99, {"other": 0.0})
    assert (stopping.best or (None,))[0] == best and stopping.is_over == is_over


def test_a_folder_of_a_dataset_is_imported_once(small_run, shared_data, tmp_path):
    def records(run, workdir=tmp_path / "run"):
        return open_mixture(RunConfig.create(run), workdir).parts[0].store

    source = shutil.copytree(shared_data / "coco_mini_train2017", tmp_path / "coco")
    run = copy.deepcopy(small_run)
    run["input"] |= dict(records=str(source), tasks=dict(all=0.0, od=1.0))
    store = records(run)
    assert store.directory == tmp_path / "run" / "records" / "coco" and len(store) > 50
    workdir_lib.claim(tmp_path / "run", run)  # Records alone do not make it another run's.
    shutil.rmtree(source)
    assert len(records(run)) == len(store), "the dataset is no longer needed"
    assert store_of(str(source), tmp_path / "run", timeout_s=60) == store.directory
    run["input"]["split"] = "val"
    with pytest.raises(UserError, match=r"no split 'val'; there are \['train'\]"):
        records(run)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.txt").write_text("nothing")
    run["input"] |= dict(records=str(tmp_path / "odd"))
    with pytest.raises(UserError, match="looks like no known format"):
        records(run)
    run["input"] |= dict(records=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere: no such directory"):
        records(run)


def test_a_metric_that_never_comes_is_told_once():
    early = EarlyStopping(EarlyStoppingConfig(metric="eval/od/ap5", patience=2))
    assert not early.complaint()  # Nothing came yet.
    early.note(10, {"loss": 1.0, "eval/od/ap50": 0.5})
    told = early.complaint()
    assert "early_stopping.metric eval/od/ap5: not reported" in told and "eval/od/ap50" in told
    assert not early.complaint()
    heard = EarlyStopping(EarlyStoppingConfig(metric="loss", patience=2))
    heard.note(10, {"loss": 1.0})
    assert not heard.complaint() and not heard.complaint("loss")
    assert "checkpoint.best_metric eval/od/ap: not reported" in heard.complaint("eval/od/ap")

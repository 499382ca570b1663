# SPDX-License-Identifier: Apache-2.0
"""Every run file builds its model (by shapes alone) and its first batch."""

from pathlib import Path

import jax
import pytest

from florence2_jax.cli.train import load_config
from florence2_jax.conversion.export import save_workdir
from florence2_jax.conversion.load import Pretrained
from florence2_jax.data.pipeline import make_dataset
from florence2_jax.data.texts import store_texts
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.florence2 import num_parameters
from florence2_jax.parallel.mesh import make_mesh
from florence2_jax.records.store import RecordStore
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training.config import RunConfig
from florence2_jax.training.job import choose_trained
from florence2_jax.training.optimizer import learning_rate, make_optimizer
from florence2_jax.training.state import init_params
from florence2_jax.typing import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUNS = ["scenes.py", "pretrain.py:base", "pretrain.py:large"]
RUNS += ["pretrain_highres.py:base", "pretrain_highres.py:large"]


FINETUNE = sorted(path.name for path in CONFIGS.glob("finetune_*.py"))


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """A tiny model, as a workdir, in the place of the hub's that fine-tuning starts from."""
    folder = tmp_path_factory.mktemp("start") / "tiny"
    folder.mkdir()
    tokenizer = Tokenizer.train(["a red circle", "What is in the image?"], vocab_size=300)
    text = dict(vocab_size=len(tokenizer), encoder_layers=1, decoder_layers=1)
    config = Florence2Config.create("tiny", text=text)
    params = init_params(config, jax.random.key(0))
    save_workdir(Pretrained(config, params, tokenizer, {}), folder, {"name": "tiny"})
    return folder


@pytest.mark.parametrize("run", FINETUNE)
def test_fine_tuning_takes_its_sizes_from_the_model_it_starts_from(run, start):
    overrides = ["--config.model.image_size=96", "--config.model.scan=False"]
    config = RunConfig.create(load_config(f"{CONFIGS}/{run}:{start}", overrides))
    assert config.model.davit.dims == (32, 64, 128, 192) and config.model.image_size == (96, 96)
    trained = choose_trained(config, config.model)
    params = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    adapters = jax.eval_shape(trained.adapters, params)
    counts = trained.count(params, adapters)
    is_whole = not (config.freeze or config.lora.rank)
    assert counts["trained"] > 0 and (counts["frozen"] == 0) == is_whole
    changing, _ = trained.split(params, adapters)
    jax.eval_shape(make_optimizer(config.optimizer, config.total_steps).init, changing)
    assert len(config.batch_spec().weights) < 4, "what is fine-tuned is said task by task"


def test_fine_tuning_recipes_differ_where_they_say(start):
    def recipe(name: str) -> RunConfig:
        file = f"{CONFIGS}/finetune_{name}.py:{start}"
        return RunConfig.create(load_config(file, ["--config.model.image_size=96"]))

    assert recipe("ocr").model.text.max_positions == 4096
    assert recipe("captions").lora.rank and recipe("vqa").freeze == ("image/*",)
    assert recipe("detection").optimizer.lr_factors == {"image/*": 0.5}
    other = load_config(f"{CONFIGS}/finetune_vqa.py", ['--config.freeze=("text/*", "image/*")'])
    assert other["freeze"] == ("text/*", "image/*")


@pytest.mark.parametrize("run", RUNS)
def test_it_builds_its_model_and_optimizer(run):
    config = RunConfig.create(load_config(f"{CONFIGS}/{run}", []))
    params = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    jax.eval_shape(make_optimizer(config.optimizer, config.total_steps).init, params)
    assert float(learning_rate(config.optimizer, config.total_steps)(0)) == 0
    make_mesh(config.mesh)


@pytest.mark.parametrize("run", RUNS)
def test_its_first_batch_has_its_shape(run, scenes):
    config = RunConfig.create(
        load_config(
            f"{CONFIGS}/{run}", [f"--config.input.records={scenes}", "--config.input.batch_size=2"]
        )
    )
    store = RecordStore(scenes, "train")
    tokenizer = Tokenizer.train(store_texts(store), vocab_size=400)
    batch = make_dataset(store, tokenizer, config.batch_spec(), seed=0)[0]
    width, height = config.model.image_size
    inputs = config.input
    assert batch["image"].shape == (2, height, width, 3)
    assert batch["prompt_ids"].shape == (2, inputs.num_prompts, inputs.prompt_length)
    assert batch["target_ids"].shape == (2, inputs.num_prompts, inputs.target_length)


def test_pretraining_has_the_paper_s_figures():  # Facts 1.1 and 4.
    runs = {run: RunConfig.create(load_config(f"{CONFIGS}/{run}", [])) for run in RUNS[1:]}
    base, large = runs["pretrain.py:base"], runs["pretrain.py:large"]
    assert num_parameters(base.model) == 231_414_016
    assert num_parameters(large.model) == 770_173_952
    assert (base.total_steps, large.total_steps) == (3_000_000_000 // 2048, 3_000_000_000 // 3072)
    assert (base.optimizer.peak_lr, large.optimizer.peak_lr) == (1e-4, 1e-5)
    assert {run.optimizer.warmup_steps for run in runs.values()} == {5000}
    assert base.model.image_size == (384, 384) and base.model.num_image_tokens == 145
    highres = runs["pretrain_highres.py:base"]
    assert highres.model.image_size == (768, 768) and highres.model.num_image_tokens == 577


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.input.batch_sise=4", "batch_sise"),
        ("--config.seed=a", "seed"),
        ("--config.mesh.fsdp=x", "fsdp"),
        ("stray", "unknown arguments: stray"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(UserError, match=message):
        RunConfig.create(load_config(f"{CONFIGS}/scenes.py", [override]), Path("w"))


def test_a_key_that_a_run_file_leaves_out_can_be_given():
    given = ["--config.ema.decay=0.9", "--config.input.exclude=a.jsonl", "--config.freeze=('a/*',)"]
    config = RunConfig.create(load_config(f"{CONFIGS}/scenes.py", given), Path("w"))
    assert (config.ema.decay, config.input.exclude, config.freeze) == (0.9, "a.jsonl", ("a/*",))
    with pytest.raises(UserError, match="seed is a value, not a section"):
        load_config(f"{CONFIGS}/scenes.py", ["--config.seed.more=1"])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("inputt",), {}, "inputt: no such key; did you mean input"),
        (("input", "ordr"), "area", r"input\.ordr: no such key; did you mean order"),
        (("input", "order"), "spiral", r"input\.order: 'spiral' is not one of random"),
        (("input", "batch_size"), "16", r"input\.batch_size: '16' is not of type int"),
        (("input", "tasks"), {"odd": 1.0}, r"input\.tasks\.odd: no such task; did you mean od"),
        (("input", "tasks"), {"all": 0.0}, r"input\.tasks: no task has a weight above 0"),
        (("input", "target_length"), 7, r"input\.target_length: 7 must be at least 8"),
        (("input", "target_length"), 5000, r"model\.text\.max_positions"),
        (("model", "davit"), {"dimz": 3}, r"model\.davit\.dimz: no such key; did you mean dims"),
        (("optimizer", "peak_lr"), 0.0, r"optimizer\.peak_lr: 0.0 must be positive"),
        (("optimizer", "lr"), 1.0, r"optimizer\.lr: no such key; did you mean .*peak_lr"),
        (("accumulate",), 3, r"accumulate: 3 does not divide input\.batch_size 8"),
        (("total_samples",), 5, "total_steps, total_samples"),
        (("tokenizer", "train_size"), 0, "tokenizer: give its path or its train_size"),
        (("mesh",), {"model": 2}, r"mesh\.model: no such axis"),
        (("loss",), {"location_smoothing_bins": -1.0}, r"loss\.location_smoothing_bins"),
        (("loss",), {"location_weight": 0.0}, r"loss\.location_weight: 0\.0 must be above 0"),
        (("init",), {"locations": "x"}, r"init\.locations"),
        (("input", "image_sizes"), {"64": 1.0}, r'image_sizes\.64: not .* such as "896x640"'),
        (("input", "image_sizes"), {"64x65": 1.0}, r"image_sizes\.64x65: model\.image_size: 65"),
        (("input", "image_sizes"), {"64x64": 0.0}, r"image_sizes\.64x64: weight 0\.0 must be"),
        (("checkpoint", "keep"), 0, r"checkpoint\.keep: 0 must be at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(small_run, place, value, message):
    target = small_run
    for name in place[:-1]:
        target = target.setdefault(name, {})
    target[place[-1]] = value
    with pytest.raises(UserError, match=message):
        RunConfig.create(small_run)

# SPDX-License-Identifier: Apache-2.0
"""Compares Florence-2 at its real sizes with transformers, float32, and writes `docs/parity.md`.

python benchmarks/parity.py --variant base --size 224x352 384x384 768x768

Both compute the same random weights (one seed) on the same batch: two random images, two prompts
and two targets of different lengths, padded. The rows that earlier runs left in --json stay in the
table, so that sizes can be run one by one. Status 1 if a row misses a limit.

The table has the peak memory of each row; `large` needs 3.1 GB each for its weights, transformers'
gradients and ours, and activations besides.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from transformers import Florence2Config as TorchConfig
from transformers import Florence2ForConditionalGeneration

from florence2_jax.conversion.configs import to_torch
from florence2_jax.conversion.tensors import ArrayLike
from florence2_jax.conversion.translate import Params, to_tensors
from florence2_jax.models.config import Florence2Config
from florence2_jax.text.tokenizer import PAD_ID
from florence2_jax.training.loss import shift_right, token_cross_entropy
from florence2_jax.training.state import init_params, merge, model_graph
from florence2_jax.typing import Size

VOCAB_SIZE, IMAGE_ID = 51_290, 51_289  # transformers': with <image>, before padding.
PROMPT_LENGTHS, TARGET_LENGTHS = (20, 13), (24, 15)
LIMITS = {"logits": 1e-4, "loss": 1e-5, "cosine": 0.99999}
NULL_GRADIENT = "k_proj.bias"  # A constant added to all scores of a softmax: no gradient.
DISTRIBUTIONS = ("jax", "flax", "torch", "transformers", "numpy")


class Inputs(NamedTuple):
    """A batch as both models read it."""

    image: NDArray  # float32 [2, Y, X, 3], as after normalisation.
    prompt_ids: NDArray  # int32 [2, L]
    target_ids: NDArray  # int32 [2, T]


class Outputs(NamedTuple):
    """What is compared; gradients by transformers' names."""

    image_features: NDArray  # [2, N, D]
    states: NDArray  # [2, N + L, D]
    logits: NDArray  # [2, T, V]
    loss: float
    gradients: Mapping[str, ArrayLike]


def main() -> int:
    """Runs the comparisons, prints their rows and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", default="base", choices=("tiny", "base", "large"))
    parser.add_argument("--size", nargs="+", default=["224x352"], help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--forward-only", action="store_true", help="no loss gradients")
    parser.add_argument("--remat", action="store_true", help="less memory for our gradients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("docs/parity.json"), help="all rows")
    parser.add_argument("--table", type=Path, default=Path("docs/parity.md"))
    args = parser.parse_args()
    rows = json.loads(args.json.read_text()) if args.json.exists() else []
    failed = False
    for text in args.size:
        width, height = map(int, text.split("x"))
        config = make_config(args.variant, (width, height), remat=args.remat)
        row = compare(config, seed=args.seed, gradients=not args.forward_only)
        row |= {"variant": args.variant, "size": text, "seed": args.seed} | _circumstances()
        rows = [old for old in rows if (old["variant"], old["size"]) != (args.variant, text)]
        rows.append(row)
        rows.sort(key=lambda r: (r["variant"], *map(int, r["size"].split("x"))))
        for path, content in ((args.json, json.dumps(rows, indent=1) + "\n"),
                              (args.table, table(rows))):  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        missed = misses(row)
        failed |= bool(missed)
        Console(width=100, highlight=False).print_json(data=row | {"misses": missed})
    return int(failed)


def make_config(variant: str, size: Size, *, remat: bool = False) -> Florence2Config:
    """The variant in float32, with the vocabulary of transformers' models."""
    return Florence2Config.create(
        variant,
        image_size=size,
        dtype="float32",
        remat="full" if remat else "none",
        text={"vocab_size": VOCAB_SIZE},
        davit={"depthwise": "shift"},
    )


def compare(config: Florence2Config, *, seed: int, gradients: bool) -> dict[str, Any]:
    """One row: the largest differences between transformers and us.

    Args:
        config: of the model.
        seed: of weights and batch.
        gradients: whether the gradients of the loss are compared too.
    """
    params, inputs = random_params(config, seed), random_inputs(config, seed)
    start = time.perf_counter()
    theirs = torch_outputs(params, config, inputs, gradients=gradients)
    between = time.perf_counter()
    params = jax.tree.map(jnp.asarray, params)  # From here on one copy, JAX's.
    ours = jax_outputs(params, config, inputs, gradients=gradients)
    row: dict[str, Any] = {
        "batch": len(inputs.image),
        "torch_s": round(between - start, 1),
        "jax_s": round(time.perf_counter() - between, 1),  # Compilation included.
    }
    seen = np.ones(ours.states.shape[:2], bool)  # States of padding are never read.
    seen[:, -inputs.prompt_ids.shape[1] :] = inputs.prompt_ids != PAD_ID
    for name, one, other in (
        ("image_features", ours.image_features, theirs.image_features),
        ("encoder", ours.states[seen], theirs.states[seen]),
        ("logits", ours.logits[..., :VOCAB_SIZE], theirs.logits),
    ):
        row[name] = _largest(one - other)
        row[f"largest_{name}"] = _largest(other)
    row |= {"loss": ours.loss, "loss_difference": abs(ours.loss / theirs.loss - 1)}
    return row | (compare_gradients(ours.gradients, theirs.gradients) if gradients else {})


def compare_gradients(
    ours: Mapping[str, ArrayLike], theirs: Mapping[str, ArrayLike]
) -> dict[str, Any]:
    """The smallest cosine between gradients of one tensor, and whose it is.

    Biases of keys have none (`NULL_GRADIENT`): of what rounding leaves of it, the largest number is
    reported beside the largest of the same layer's weight, on either side.
    """
    cosines, lengths, null = {}, {}, 0.0
    for name in theirs:
        a, b = (np.asarray(side[name]).astype(np.float64).ravel() for side in (ours, theirs))
        if name.endswith(NULL_GRADIENT):
            weight = np.asarray(theirs[name.replace(".bias", ".weight")])
            null = max(null, max(_largest(a), _largest(b)) / _largest(weight))
            continue
        length = float(np.linalg.norm(b))
        cosines[name] = float(a @ b) / (float(np.linalg.norm(a)) * length)
        lengths[name] = float(np.linalg.norm(a - b)) / length
    worst = min(cosines, key=lambda name: cosines[name])
    return {
        "cosine": cosines[worst],
        "cosine_of": worst,
        "largest_relative_error": max(lengths.values()),
        "gradients": len(cosines),
        "null_gradients": null,
    }


def misses(row: Mapping[str, Any]) -> list[str]:
    """Which limits a row misses."""
    missed = [name for name, key in (("logits", "logits"), ("loss", "loss_difference"))
              if not row[key] <= LIMITS[name]]  # fmt: skip
    if not row.get("cosine", 1.0) > LIMITS["cosine"]:
        missed.append("cosine")
    return missed


# The two models


def random_params(config: Florence2Config, seed: int) -> Params:
    """Every parameter random, none without effect, activations near unit scale.

    Dense layers have the deviation `inputs**-0.5` and tables `width**-0.5`. The depthwise
    convolutions are residual, without a norm before them, and 48 in a row: they stay small. So do
    queries and keys of channel attention: a score sums over all positions, and unit ones give
    scores of 100. Such a softmax magnifies the rounding of both sides: image features of base were
    then 3e-5 (PyTorch) and 6e-5 (JAX) from float64, with smaller ones 8e-6 and 5e-6. What attention
    adds in the text model is small as well: it is nearly the same for all positions, and after
    twelve norms of such sums so were the states of `large`. Keys that are all alike have no
    gradient but rounding (cosine 0.9991 at 224 x 352).
    """

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> NDArray[np.float32]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rng = np.random.default_rng([seed, *name.encode()])
        noise = rng.standard_normal(shape.shape, np.float32)
        if name.endswith("scale"):
            return 1 + np.float32(0.1) * noise
        if name.endswith(("conv1/kernel", "conv2/kernel")):
            deviation = 0.05
        elif name.endswith("kernel"):
            deviation = float(np.prod(shape.shape[:-1])) ** -0.5
        elif name.endswith("embedding"):
            deviation = shape.shape[-1] ** -0.5
        else:  # Biases, and the positions of the image.
            deviation = 0.1
        noise *= np.float32(deviation)
        if "channel/attn/qkv" in name:
            noise[..., : 2 * noise.shape[-1] // 3] *= np.float32(0.2)
        if name.startswith("text/") and name.endswith("out_proj/kernel"):
            noise *= np.float32(0.25)
        return noise

    abstract = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(draw, abstract)


def random_inputs(config: Florence2Config, seed: int) -> Inputs:
    """Two images, two prompts and two targets; the second ones padded."""
    rng = np.random.default_rng(seed)
    width, height = config.image_size
    image = rng.standard_normal((2, height, width, 3), np.float32)

    def rows(lengths: tuple[int, int]) -> NDArray:
        ids = rng.integers(4, IMAGE_ID, size=(2, max(lengths)), dtype=np.int32)
        for row, length in zip(ids, lengths, strict=True):
            row[length:] = PAD_ID
        return ids

    return Inputs(image, rows(PROMPT_LENGTHS), rows(TARGET_LENGTHS))


def torch_outputs(
    params: Params, config: Florence2Config, inputs: Inputs, *, gradients: bool
) -> Outputs:
    """By transformers. Its weights are views of `params`."""
    model = _torch_model(params, config)
    features: list[torch.Tensor] = []
    projector = model.model.multi_modal_projector
    projector.register_forward_hook(lambda module, args, output: features.append(output))
    places = np.full((2, config.num_image_tokens), IMAGE_ID)
    ids = np.concatenate([places, inputs.prompt_ids], axis=1)
    targets = inputs.target_ids.astype(np.int64)
    with torch.set_grad_enabled(gradients):
        outputs = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(ids != PAD_ID).long(),
            pixel_values=torch.from_numpy(inputs.image).permute(0, 3, 1, 2),
            labels=torch.from_numpy(np.where(targets == PAD_ID, -100, targets)),
        )
    named = dict(model.named_parameters()) if gradients else {}
    if gradients:
        outputs.loss.backward()
    return Outputs(
        features[0].detach().numpy(),
        outputs.encoder_last_hidden_state.detach().numpy(),
        outputs.logits.detach().numpy(),
        float(outputs.loss.detach()),
        {name: parameter.grad.numpy() for name, parameter in named.items()},
    )


def _torch_model(params: Params, config: Florence2Config) -> Florence2ForConditionalGeneration:
    sizes = {"num_rows": VOCAB_SIZE, "image_id": IMAGE_ID, "dtype": "float32"}
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(TorchConfig(**to_torch(config, "hf", **sizes)))
    tensors = to_tensors(params, config, "hf", num_rows=VOCAB_SIZE)
    weights = {name: torch.from_numpy(np.asarray(tensor)) for name, tensor in tensors.items()}
    unknown = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    unset = [name for name, value in model.state_dict().items() if value.is_meta]
    if unknown or unset:
        raise ValueError(f"transformers' tensors are others: unknown {unknown}, unset {unset}")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()  # Dropout off; gradients are taken all the same.


def jax_outputs(
    params: Params, config: Florence2Config, inputs: Inputs, *, gradients: bool
) -> Outputs:
    """By this package. Where gradients are asked for they take the memory of `params`."""
    graphdef = model_graph(config)

    def run(params, inputs):
        model = merge(graphdef, params)
        features = model.encode_image(inputs.image)
        states, mask = model.encode(features, inputs.prompt_ids[:, None])
        logits = model.decode(shift_right(inputs.target_ids), states, mask)
        losses = token_cross_entropy(logits[:, None], inputs.target_ids[:, None])
        loss = losses.sum() / (inputs.target_ids != PAD_ID).sum()
        return loss, (features, states, logits)

    if gradients:
        program = jax.jit(jax.value_and_grad(run, has_aux=True), donate_argnums=0)
    else:
        program = jax.jit(run)
    with jax.default_matmul_precision("highest"):
        result = program(params, jax.tree.map(jnp.asarray, inputs))
    (loss, outputs), grads = result if gradients else (result, None)
    named = to_tensors(grads, config, "hf", num_rows=VOCAB_SIZE) if gradients else {}
    features, states, logits = map(np.asarray, outputs)
    return Outputs(features, states, logits, float(loss), named)


# The table


def table(rows: list[dict[str, Any]]) -> str:
    """`docs/parity.md`."""
    lines = [_HEAD, _COLUMNS, "|" + "---|" * (_COLUMNS.count("|") - 1)]
    for row in rows:
        cosine = f"{1 - row['cosine']:.1e}" if "cosine" in row else "not run"
        cells = [row["variant"], row["size"].replace("x", " x ")]
        cells += [
            f"{row[name]:.1e} of {row[f'largest_{name}']:.1f}"
            for name in ("image_features", "encoder", "logits")
        ]
        cells += [f"{row['loss_difference']:.1e}", cosine, f"`{row.get('cosine_of', '-')}`"]
        cells += [f"{row['torch_s']:.0f}", f"{row['jax_s']:.0f}", f"{row['peak_gb']:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("\n## Details\n")
    for row in rows:
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        null = (
            f" {row['gradients']} tensors have gradients, the largest relative error (norm of the "
            f"difference) is {row['largest_relative_error']:.1e}; what rounding leaves in biases "
            f"of keys is {row['null_gradients']:.1e} of their weights' gradients."
            if "cosine" in row
            else ""
        )
        missed = misses(row)
        verdict = f"**Misses: {', '.join(missed)}.**" if missed else "Within all limits."
        lines.append(
            f"- **{row['variant']}, {row['size']}**, seed {row['seed']}: loss {row['loss']:.5f}; "
            f"{verdict}{null} {row['cores']} cores; {versions}."
        )
    return "\n".join(lines) + "\n"


_HEAD = f"""# Parity with transformers at full size

Written by `benchmarks/parity.py`:

```bash
python benchmarks/parity.py --variant base --size 224x352 384x384 768x768
python benchmarks/parity.py --variant large --size 224x352 384x384 --remat
python benchmarks/parity.py --variant large --size 768x768 --forward-only
```

Compared is transformers' own Florence2, in float32 on a CPU, with the same random weights of one
seed: every parameter is random and activations are near unit scale (see `random_params`). A
batch has two random images, two prompts ({" and ".join(map(str, PROMPT_LENGTHS))} tokens) and two
targets ({" and ".join(map(str, TARGET_LENGTHS))} tokens), padded; dropout is off; the loss is the
mean over target tokens. Sizes are width x height in pixels. At 384 and 768 px windows of 12 tokens
tile every stage, at 224 x 352 (not square) none.

Numbers are the largest absolute difference, "of" the largest absolute value it was found among;
the loss is relative. Encoder states of padding are left out: nothing reads them. Of gradients, one
minus the smallest cosine of any tensor is shown, with its name. Biases of keys are not among them:
they add a constant to all scores of a softmax, so their gradient is zero but for rounding.

Limits: logits {LIMITS["logits"]:g}, loss {LIMITS["loss"]:g} relative, 1 - cosine
{1 - LIMITS["cosine"]:.0e}.
"""
_COLUMNS = (
    "| variant | image | image features | encoder | logits | loss | 1 - cosine | of "
    "| PyTorch, s | JAX with compilation, s | peak GB |"
)


def _circumstances() -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "peak_gb": round(peak / 1e9, 2),  # Of the process: with --size A B, of both.
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS},
    }


def _largest(array: ArrayLike) -> float:
    return float(np.abs(np.asarray(array)).max())


if __name__ == "__main__":
    raise SystemExit(main())

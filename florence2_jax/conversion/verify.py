# SPDX-License-Identifier: Apache-2.0
"""Runs two folders of one model on random input and compares what they compute.

Workdirs run here; folders of transformers and of Microsoft run in PyTorch, by transformers' own
Florence2 (Microsoft's code is not executed: its tensors are renamed).
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from florence2_jax.conversion.configs import to_torch
from florence2_jax.conversion.files import CONFIG, read_json
from florence2_jax.conversion.load import (
    is_workdir,
    load_pretrained,
    read_config,
    read_pretrained,
)
from florence2_jax.conversion.translate import to_tensors
from florence2_jax.models.config import Florence2Config
from florence2_jax.text.tokenizer import DECODER_START_ID, PAD_ID
from florence2_jax.training.state import merge, model_graph
from florence2_jax.typing import UserError

_PROMPT_LENGTH, _TARGET_LENGTH = 12, 8
_FIRST_PIECE = 4


class _Inputs(NamedTuple):
    image: NDArray  # float32 [2, Y, X, 3], as after normalisation.
    prompt_ids: NDArray  # [2, L], the second row padded.
    decoder_ids: NDArray  # [2, T]
    num_ids: int  # Rows both models have.


def compare(source: Path, target: Path, *, seed: int = 0) -> dict[str, float]:
    """The largest absolute differences between two folders of one model, in float32.

    Args:
        source: a workdir, or a folder of transformers or Microsoft.
        target: the same.
        seed: of the random image, prompts (one of them padded) and decoder input.

    Returns:
        "image features", "encoder", "logits": largest difference; "largest logit" to judge it by.

    Raises:
        UserError: if a folder needs PyTorch and transformers, and they are not installed.
    """
    config = read_config(source)
    num_ids = min(config.text.vocab_size, read_config(target).text.vocab_size)
    inputs = _random_inputs(config, num_ids, seed)
    one, other = _outputs(source, inputs), _outputs(target, inputs)
    differences = {name: float(np.abs(one[name] - other[name]).max()) for name in one}
    return differences | {"largest logit": float(np.abs(one["logits"]).max())}


def check_installed() -> Any:
    """PyTorch, which with transformers is needed to compare. Raises UserError without them."""
    try:
        import torch
        import transformers  # noqa: F401  # Used later, missed here.
    except ImportError as error:
        raise UserError(
            "--verify runs the model in PyTorch too: pip install 'florence2-jax[convert]'"
        ) from error
    return torch


def _random_inputs(config: Florence2Config, num_ids: int, seed: int) -> _Inputs:
    rng = np.random.default_rng(seed)
    width, height = config.image_size
    image = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    room = config.text.max_positions
    length = min(_PROMPT_LENGTH, room - config.num_image_tokens)
    prompt_ids = rng.integers(_FIRST_PIECE, num_ids - 1, size=(2, length))
    prompt_ids[1, length // 2 :] = PAD_ID
    decoder_ids = rng.integers(_FIRST_PIECE, num_ids - 1, size=(2, min(_TARGET_LENGTH, room)))
    decoder_ids[:, 0] = DECODER_START_ID
    return _Inputs(image, prompt_ids, decoder_ids, num_ids)


def _outputs(folder: Path, inputs: _Inputs) -> dict[str, NDArray]:
    run = _run_here if is_workdir(folder) else _run_in_torch
    tokens, states, logits = run(folder, inputs)
    seen = np.concatenate(
        [np.ones(tokens.shape[:2], bool), inputs.prompt_ids != PAD_ID], axis=1
    )  # States of padding are never read.
    return {
        "image features": tokens,
        "encoder": states[seen],
        "logits": logits[..., : inputs.num_ids],
    }


def _run_here(folder: Path, inputs: _Inputs) -> tuple[NDArray, NDArray, NDArray]:
    model = load_pretrained(folder, dtype="float32")
    with jax.default_matmul_precision("highest"):
        outputs = _forward(
            model.params,
            jnp.asarray(inputs.image),
            jnp.asarray(inputs.prompt_ids, jnp.int32),
            jnp.asarray(inputs.decoder_ids, jnp.int32),
            graphdef=model_graph(model.config),
        )
    tokens, states, logits = map(np.asarray, outputs)
    return tokens, states, logits


@functools.partial(jax.jit, static_argnames="graphdef")
def _forward(params, image, prompt_ids, decoder_ids, *, graphdef):
    model = merge(graphdef, params)
    tokens = model.encode_image(image)
    states, mask = model.encode(tokens, prompt_ids[:, None])
    return tokens, states, model.decode(decoder_ids, states, mask)


def _run_in_torch(folder: Path, inputs: _Inputs) -> tuple[NDArray, NDArray, NDArray]:
    torch = check_installed()
    model, image_id = _torch_model(folder)
    pixels = torch.tensor(inputs.image).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels).pooler_output
        places = np.full(features.shape[:2], image_id)
        ids = np.concatenate([places, inputs.prompt_ids], axis=1)
        outputs = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(ids != PAD_ID).long(),
            pixel_values=pixels,
            decoder_input_ids=torch.tensor(inputs.decoder_ids),
        )
    states = outputs.encoder_last_hidden_state
    return features.numpy(), states.numpy(), outputs.logits.numpy()


def _torch_model(folder: Path) -> tuple[Any, int]:
    """transformers' Florence2 with a folder's weights, and the id of `<image>`."""
    torch = check_installed()
    from transformers import Florence2Config as TorchConfig
    from transformers import Florence2ForConditionalGeneration

    values = read_json(folder / CONFIG)
    if "image_token_id" in values:
        loaded: Any = Florence2ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        model, report = loaded
        wrong = {kind: names for kind, names in report.items() if names}
        if wrong:
            raise UserError(f"{folder}: transformers does not find its tensors: {wrong}")
        return model.eval(), values["image_token_id"]
    source = read_pretrained(folder)
    image_id = len(source.tokenizer) - 1
    rows = max(source.config.text.vocab_size, image_id + 1)
    sizes = {"num_rows": rows, "image_id": image_id, "dtype": "float32"}
    with torch.device("meta"):
        config = TorchConfig(**to_torch(source.config, "hf", **sizes))
        model = Florence2ForConditionalGeneration(config)
    tensors = to_tensors(source.params, source.config, "hf", num_rows=rows)
    weights = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, value in model.state_dict().items() if value.is_meta]
    if left:
        raise UserError(f"{folder}: tensors that transformers needs are missing: {', '.join(left)}")
    return model.eval(), image_id

# SPDX-License-Identifier: Apache-2.0
"""Generation with a KV cache: one compiled call per (batch, hypotheses, length).

Each image is encoded once for its K prompts, whatever their tasks; keys and values of the encoder
are kept once per prompt, whatever its beams; the loop ends with the last answer.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped, UInt8, UInt32
from numpy.typing import NDArray

from florence2_jax.inference.beams import beam_search
from florence2_jax.inference.generation_config import GenerationConfig
from florence2_jax.inference.rules import Constraint, Rules
from florence2_jax.inference.sampling import sample
from florence2_jax.models.florence2 import Florence2
from florence2_jax.models.layers import unstack
from florence2_jax.text.tokenizer import PAD_ID
from florence2_jax.training.state import merge
from florence2_jax.typing import UserError

__all__ = ["Constraint", "Generated", "GenerationConfig", "generate", "greedy"]


class Generated(NamedTuple):
    """R answers to each of K prompts about B images, best first where they are beams.

    Attributes:
        ids: new tokens, usually `<s>` to `</s>`, with padding behind. A prompt of padding alone is
            not answered: its row is padding.
        log_probs: the log-probability of each token among all tokens, as the model gave it:
            before n-grams, grammar, temperature and filters, whose own probability it is not. 0 at
            forced and padding tokens. For beams it is `compute_transition_scores(...,
            normalize_logits=False)` of transformers.
        scores: of whole answers. Beams: the sum of the scores searched by over
            `new_tokens ** length_penalty`, `sequences_scores` of transformers; about -1e9 where
            fewer than R hypotheses were finished. Else the sum of `log_probs` over the same.
    """

    ids: Int[Array, "B K R T"]
    log_probs: Float[Array, "B K R T"]
    scores: Float[Array, "B K R"]


def generate(
    params: Any,
    image: UInt8[Array | NDArray, "B Y X 3"] | Float[Array | NDArray, "B Y X 3"],
    prompt_ids: Int[Array | NDArray, "B K L"],
    *,
    graphdef: nnx.GraphDef,
    config: GenerationConfig,
    ngram_sizes: Int[Array | NDArray, "B K"] | None = None,
    grammar: Constraint | None = None,
    initial_states: Int[Array | NDArray, "B K"] | None = None,
    first_location_id: int | None = None,
) -> Generated:
    """Answers K prompts about each of B images.

    The program is compiled once per shape and config (its seed apart) and has nothing in it of
    options that are off.

    Args:
        params: parameters of the model, a nested dict.
        image: pixels as uint8, or floats that are already normalised.
        prompt_ids: `<s> ... </s>` and padding; rows of padding alone are not answered.
        graphdef: the model without its arrays (`training.state.model_graph`).
        config: how to generate.
        ngram_sizes: the n-gram rule of each prompt, `config.ngram_size(task)`; by default
            `config.no_repeat_ngram_size` for all.
        grammar: tables of what may be written, see `Constraint`.
        initial_states: the state of the grammar behind the forced `<s>`, for each prompt.
        first_location_id: of the tokenizer; `config.pool_locations` needs it.

    Raises:
        UserError: if the answers are longer than the model has positions for, a grammar cannot be
            followed under the config, an n-gram size is larger than the config knows of, or
            locations are to be pooled and it is not said which they are.
    """
    first_location = None
    if config.pool_locations:
        if first_location_id is None:
            raise UserError("pool_locations: give the first_location_id of the tokenizer")
        first_location = np.int32(first_location_id)
    _check(prompt_ids, config, ngram_sizes, grammar, initial_states)
    if ngram_sizes is None:
        ngram_sizes = np.full(prompt_ids.shape[:2], config.no_repeat_ngram_size, np.int32)
    if grammar is not None:
        grammar = Constraint(*map(jnp.asarray, grammar))
        initial_states = np.asarray(initial_states, np.int32)
    return _generate(
        params,
        image,
        prompt_ids,
        np.asarray(ngram_sizes, np.int32),
        grammar,
        initial_states,
        np.uint32(config.seed),
        first_location,
        graphdef=graphdef,
        config=dataclasses.replace(config, seed=0),
    )


def greedy(
    params: Any,
    image: UInt8[Array | NDArray, "B Y X 3"],
    prompt_ids: Int[Array | NDArray, "B K L"],
    *,
    graphdef: nnx.GraphDef,
    max_length: int,
) -> tuple[Int[Array, "B K T"], Float[Array, "B K T"]]:
    """The most probable next token, again and again, with no rule but `<s>` first, `</s>` last.

    Returns:
        Token ids and their log-probabilities, `T = max_length` new tokens: see `Generated`.
    """
    config = GenerationConfig(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=max_length)
    answers = generate(params, image, prompt_ids, graphdef=graphdef, config=config)
    return answers.ids[:, :, 0], answers.log_probs[:, :, 0]


@functools.partial(jax.jit, static_argnames=("graphdef", "config"))
def _generate(
    params: Any,
    image: Shaped[Array, "B Y X 3"],
    prompt_ids: Int[Array, "B K L"],
    ngram_sizes: Int[Array, "B K"],
    grammar: Constraint | None,
    initial_states: Int[Array, "B K"] | None,
    seed: UInt32[Array, ""],
    first_location: Int[Array, ""] | None,
    *,
    graphdef: nnx.GraphDef,
    config: GenerationConfig,
) -> Generated:
    model = merge(graphdef, params)
    room = model.config.text.max_positions
    if config.num_new_tokens > room:
        raise UserError(
            f"max_new_tokens={config.num_new_tokens} is more than the {room} positions the model"
            " has (text.max_positions)"
        )
    tokens = model.encode_image(image)
    states, mask = model.encode(tokens, prompt_ids)
    is_asked = (prompt_ids != PAD_ID).any(axis=-1).reshape(-1)
    width = max(config.num_beams, config.num_return_sequences)
    search = beam_search if config.num_beams > 1 else sample
    ids, log_probs, scores = search(
        _prepare_decoder(model),
        states,
        mask,
        is_asked,
        rules=Rules(jnp.repeat(ngram_sizes.reshape(-1), width), grammar, first_location),
        initial_states=None if initial_states is None else initial_states.reshape(-1),
        key=jax.random.key(seed),
        config=config,
    )
    answers = Generated(
        ids=jnp.where(is_asked[:, None, None], ids, PAD_ID),
        log_probs=jnp.where(is_asked[:, None, None], log_probs, 0.0),
        scores=jnp.where(is_asked[:, None], scores, 0.0),
    )
    returned = config.num_return_sequences
    return Generated(*(x[:, :returned].reshape(*prompt_ids.shape[:2], returned, *x.shape[2:])
                       for x in answers))  # fmt: skip


def _prepare_decoder(model: Florence2) -> Florence2:
    """Does before the loop what would else be done for every token: casts, and taking apart scans.

    Matrices are used in the dtype of activations anyway; norms and biases stay as they are.
    """
    decoder = model.text.decoder
    decoder.layers = nnx.List(unstack(decoder.layers))
    dtype = model.config.dtype
    for module in (decoder, model.text.shared):
        cast = jax.tree.map(lambda p: p.astype(dtype) if p.ndim > 1 else p, nnx.state(module))
        nnx.update(module, cast)
    return model


def _check(prompt_ids, config, ngram_sizes, grammar, initial_states) -> None:
    if ngram_sizes is not None and np.max(ngram_sizes, initial=0) > config.largest_ngram_size:
        raise UserError(
            f"ngram_sizes: {np.max(ngram_sizes)} is more than config.no_repeat_ngram_size and its"
            f" task_ngram_sizes ({config.largest_ngram_size}) compile for: name it there"
        )
    if (grammar is None) != (initial_states is None):
        raise UserError("grammar and initial_states belong together: give both or neither")
    if grammar is None:
        return
    if config.forced_bos_token_id is None:
        raise UserError("a grammar begins behind the forced <s>: forced_bos_token_id is None")
    asked = np.asarray(initial_states)[(np.asarray(prompt_ids) != PAD_ID).any(axis=-1)]
    needed = 1 + np.max(np.asarray(grammar.finish_cost)[asked], initial=0)
    if needed > config.num_new_tokens:
        raise UserError(
            f"max_new_tokens={config.num_new_tokens} is too short for the grammar, whose shortest"
            f" answer has {needed} tokens"
        )

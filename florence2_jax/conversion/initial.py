# SPDX-License-Identifier: Apache-2.0
"""Parameters to start pre-training from: BART's text towers, an ImageNet DaViT, the rest fresh.

*Fresh* is what a run starts from without any of this (`training.state.init_params`): by default
N(0, 0.02). It is the rule of the projector, for which nothing fitting is published: its matrix
(which Microsoft's code leaves uninitialised; its scale is of no consequence, because a norm
follows), its norm, and the positions of the image.

`initial_bart` and `initial_davit` say what becomes of each tensor of a source.
"""

from pathlib import Path

import jax

from florence2_jax.conversion.initial_bart import bart_tensors
from florence2_jax.conversion.initial_davit import davit_tensors
from florence2_jax.conversion.translate import Params, to_params, to_tensors
from florence2_jax.models.config import Florence2Config
from florence2_jax.text.tokenizer import Tokenizer
from florence2_jax.training.state import InitConfig, init_params


def initialize(
    config: Florence2Config,
    *,
    bart: str | Path | None = None,
    davit: str | Path | None = None,
    seed: int,
    init: InitConfig = InitConfig(),
    tokenizer: Tokenizer | None = None,
) -> Params:
    """Parameters from what others trained, as nested dicts of numpy float32 arrays.

    Args:
        config: of the model; its `image_size` is the resolution for which the image encoder
            computes what the source computes.
        bart: a folder or hub name in the layout of `facebook/bart-base`.
        davit: a folder, a file of weights or a hub name, of timm or of DaViT's authors.
        seed: of the fresh parameters; the same as those of a run with this seed.
        init: how fresh parameters are made.
        tokenizer: the run's. If it is given, BART's vocabulary must be its base vocabulary.

    Raises:
        UserError: naming every tensor or size of a source that does not fit.
        ValueError: if `init.locations` needs a tokenizer and there is none.
    """
    if init.locations == "ordinal" and tokenizer is None:
        raise ValueError("init.locations='ordinal' needs the tokenizer: it knows their rows")
    first_location_id = tokenizer.first_location_id if tokenizer else 0
    fresh = init_params(config, jax.random.key(seed), init, first_location_id=first_location_id)
    # Through the tables of names, and checked as a checkpoint of transformers' would be.
    tensors = dict(to_tensors(fresh, config, "hf"))
    if bart:
        tensors |= bart_tensors(bart, tensors, config, tokenizer=tokenizer)
    if davit:
        tensors |= davit_tensors(davit, tensors, config)
    return to_params(tensors, config, "hf", place="the initial parameters")

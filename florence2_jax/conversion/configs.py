# SPDX-License-Identifier: Apache-2.0
"""`config.json` and `generation_config.json` of transformers and of Microsoft <-> ours.

Microsoft and transformers say the same under other names (`SIZES`), and both name options of which
the model knows one value (`FIXED`): a checkpoint that asks for another is refused. Keys beside
these do not touch what is computed. The sizes of the vocabulary and of the position tables are
read from the tensors, where released `config.json`s have been wrong.
"""

from collections.abc import Mapping
from typing import Any

from florence2_jax.conversion.names import ALIASES, EMBEDDING, TABLE, Dialect
from florence2_jax.conversion.tensors import ArrayLike
from florence2_jax.conversion.translate import NUM_FRAMES
from florence2_jax.models.config import Florence2Config
from florence2_jax.models.encoder_decoder import POSITION_OFFSET
from florence2_jax.text.tokenizer import BOS_ID, DECODER_START_ID, EOS_ID, PAD_ID
from florence2_jax.typing import Size, UserError

GENERATION: dict[str, Any] = {
    "forced_bos_token_id": BOS_ID,
    "forced_eos_token_id": EOS_ID,
    "num_beams": 3,
    "no_repeat_ngram_size": 3,
    "early_stopping": True,
}
"""How the released models generate, wherever nothing else is said."""

_UNSAID: dict[str, Any] = {
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "early_stopping": False,
}
"""What transformers does where a `generation_config.json` leaves an option out."""

_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "length_penalty")
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p")
_OURS = ("pool_locations",)  # transformers keeps them, and does nothing with them.

_IDS = {
    "bos_token_id": BOS_ID,
    "pad_token_id": PAD_ID,
    "eos_token_id": EOS_ID,
    "decoder_start_token_id": DECODER_START_ID,
}

SIZES: tuple[tuple[str, str, str, Any], ...] = (
    # Ours, transformers', Microsoft's, what transformers takes where it is not written.
    ("dims", "embed_dim", "dim_embed", (128, 256, 512, 1024)),
    ("num_heads", "num_heads", "num_heads", (4, 8, 16, 32)),
    ("depths", "depths", "depths", (1, 1, 9, 1)),
    ("window_size", "window_size", "window_size", 12),
    ("patch_kernels", "patch_size", "patch_size", (7, 3, 3, 3)),
    ("patch_strides", "patch_stride", "patch_stride", (4, 2, 2, 2)),
    ("pre_norm", "patch_prenorm", "patch_prenorm", (False, True, True, True)),
    ("mlp_ratio", "mlp_ratio", "mlp_ratio", 4.0),
    ("drop_path_rate", "drop_path_rate", "drop_path_rate", 0.1),
)
"""Image encoder sizes."""

_TEXT_SIZES: tuple[tuple[str, str, Any], ...] = (
    ("d_model", "d_model", 1024),
    ("encoder_layers", "encoder_layers", 12),
    ("decoder_layers", "decoder_layers", 12),
    ("num_heads", "encoder_attention_heads", 16),
    ("mlp_dim", "encoder_ffn_dim", 4096),
    ("vocab_size", "vocab_size", 51_289),
    ("max_positions", "max_position_embeddings", 1024),
    ("dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.0),
    ("activation_dropout", "activation_dropout", 0.0),
)

_FIXED_TEXT: dict[str, Any] = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "tie_word_embeddings": True,
} | _IDS
_DEFAULTS: dict[str, Any] = {
    "num_groups": (4, 8, 16, 32),
    "patch_padding": (3, 1, 1, 1),
    "projection_dim": 1024,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
}
"""What transformers takes where these are not written."""

_FIXED_VISION: dict[str, Any] = {
    "in_channels": 3,
    "qkv_bias": True,
    "activation_function": "gelu",
    "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    "visual_temporal_embedding.type": "COSINE",
    "image_pos_embed.type": "learned_abs_2d",
}


def from_torch(
    values: Mapping[str, Any],
    tensors: Mapping[str, ArrayLike],
    *,
    image_size: Size | None = None,
    dtype: str = "float32",
    place: str = "config.json",
) -> tuple[Florence2Config, Dialect]:
    """The model that a `config.json` and its tensors describe, and whose names they have.

    Args:
        values: the file, read.
        tensors: for the sizes of the vocabulary and of the position tables.
        image_size: of the processor; 768 px square where it is not known.
        dtype: to compute in.
        place: the file, for errors.

    Raises:
        UserError: if it is another architecture, or asks for what this model does not compute.
    """
    kind = values.get("model_type")
    if kind != "florence2":
        raise UserError(f"{place} describes a model of type {kind!r}, not florence2")
    vision, text = values.get("vision_config"), values.get("text_config")
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        raise UserError(f"{place}: vision_config and text_config are missing")
    microsoft = "dim_embed" in vision or "image_pos_embed" in vision
    dialect: Dialect = "microsoft" if microsoft else "hf"
    davit = {ours: vision.get(ms if microsoft else hf, default) for ours, hf, ms, default in SIZES}
    sizes = {ours: text.get(theirs, default) for ours, theirs, default in _TEXT_SIZES}
    sizes |= _measured(tensors, dialect)
    positions = "image_pos_embed.max_pos_embeddings" if microsoft else "max_position_embeddings"
    config = Florence2Config.create(
        davit=davit,
        text=sizes,
        image_size=image_size or (768, 768),
        max_image_positions=_look_up(vision, positions, 50),
        dtype=dtype,
    )
    wrong = _differences("vision_config", vision, _FIXED_VISION | _implied_vision(config))
    wrong += _differences("text_config", text, _FIXED_TEXT | _implied_text(config))
    wrong += _differences("", values, {"tie_word_embeddings": True})
    if wrong:
        raise UserError(f"{place} asks for what Florence-2 does not compute: {'; '.join(wrong)}")
    return config, dialect


def to_torch(
    config: Florence2Config,
    dialect: Dialect,
    *,
    num_rows: int,
    image_id: int,
    dtype: str,
    generation: Mapping[str, Any] = GENERATION,
) -> dict[str, Any]:
    """A `config.json`.

    Args:
        config: of the model.
        dialect: whose.
        num_rows: of the embedding that is written.
        image_id: of `<image>`, in transformers' vocabulary.
        dtype: of the tensors that are written.
        generation: how it generates, which Microsoft's code reads here.

    Raises:
        UserError: if Microsoft's code cannot run the model.
    """
    microsoft = dialect == "microsoft"
    davit, d_model = config.davit, config.text.d_model
    if microsoft and davit.mlp_ratio != 4:
        raise UserError(f"davit.mlp_ratio {davit.mlp_ratio}: Microsoft's code knows 4 only")
    vision: dict[str, Any] = {
        (ms if microsoft else hf): getattr(davit, ours) for ours, hf, ms, _ in SIZES
    } | _implied_vision(config)
    frames, positions = NUM_FRAMES, config.max_image_positions
    if microsoft:
        vision |= {
            "model_type": "davit",
            "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": frames},
            "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": positions},
            "image_feature_source": _FIXED_VISION["image_feature_source"],
        }
    else:
        vision |= {"model_type": "florence_vision", "activation_function": "gelu"}
        vision |= {"max_temporal_embeddings": frames, "max_position_embeddings": positions}
    text = {theirs: getattr(config.text, ours) for ours, theirs, _ in _TEXT_SIZES}
    text |= _implied_text(config) | {"vocab_size": num_rows, "is_encoder_decoder": True}
    text |= {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True}
    text |= _IDS
    values = {
        "architectures": ["Florence2ForConditionalGeneration"],
        "model_type": "florence2",
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "vision_config": vision,
    }
    if not microsoft:
        text["model_type"] = "bart"
        return values | {"text_config": text, "image_token_id": image_id, "dtype": dtype}
    # Where its code is; it is not copied into the folder.
    home = "microsoft/Florence-2-large--"
    values["auto_map"] = {
        "AutoConfig": f"{home}configuration_florence2.Florence2Config",
        "AutoModelForCausalLM": f"{home}modeling_florence2.Florence2ForConditionalGeneration",
    }
    values |= {"projection_dim": d_model, "vocab_size": num_rows, "torch_dtype": dtype}
    return values | {"text_config": text | dict(generation)}


def generation_from_torch(
    values: Mapping[str, Any] | None, config: Mapping[str, Any], dialect: Dialect
) -> dict[str, Any]:
    """How a folder generates, as fields of `inference.generation_config.GenerationConfig`.

    Args:
        values: its `generation_config.json`, or None if it has none. Then Microsoft's models do as
            their `text_config` says, others as the released ones.
        config: its `config.json`.
        dialect: whose.
    """
    unsaid = GENERATION if values is None else _UNSAID
    if values is None:
        values = dict(config["text_config"]) if dialect == "microsoft" else {}
    options = {key: values.get(key, default) for key, default in unsaid.items()}
    options = {k: _UNSAID[k] if value is None else value for k, value in options.items()}
    keys = (*_LENGTHS, *_OURS, *(_SAMPLING if values.get("do_sample") else ()))
    return options | {key: values[key] for key in keys if values.get(key) is not None}


def generation_to_torch(generation: Mapping[str, Any]) -> dict[str, Any]:
    """A `generation_config.json`."""
    return _IDS | dict(generation)


def _measured(tensors: Mapping[str, ArrayLike], dialect: Dialect) -> dict[str, int]:
    """Sizes that the tensors say; nothing of those that are missing."""
    sizes = {}
    names = {row.path: row.name(dialect) for row in TABLE}
    for name in (names[EMBEDDING], *ALIASES[dialect]):
        if name in tensors and len(tensors[name].shape) == 2:
            sizes["vocab_size"] = int(tensors[name].shape[0])
            break
    positions = tensors.get(names["text/decoder/positions/embedding"])
    if positions is not None and positions.shape and positions.shape[0] > POSITION_OFFSET:
        sizes["max_positions"] = int(positions.shape[0]) - POSITION_OFFSET
    return sizes


def _implied_vision(config: Florence2Config) -> dict[str, Any]:
    """What follows from our sizes, and theirs must therefore say."""
    return {
        "num_groups": config.davit.num_heads,
        "patch_padding": config.davit.patch_paddings,
        "projection_dim": config.text.d_model,
    }


def _implied_text(config: Florence2Config) -> dict[str, Any]:
    return {
        "decoder_attention_heads": config.text.num_heads,
        "decoder_ffn_dim": config.text.mlp_dim,
    }


def _differences(place: str, values: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    dot = f"{place}." if place else ""
    found = {key: _look_up(values, key, _DEFAULTS.get(key, value)) for key, value in wanted.items()}
    return [
        f"{dot}{key} is {found[key]!r}, expected {value!r}"
        for key, value in wanted.items()
        if _plain(found[key]) != _plain(value)
    ]


def _look_up(values: Any, key: str, default: Any) -> Any:
    """`values["a"]["b"]` for "a.b"; the default where it is not written, or null."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return default if values is None else values


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value

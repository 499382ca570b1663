# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints as others write them: transformers' folders, and Microsoft's.

Microsoft's names are made here from transformers' by rules of their own, written apart from the
package's table, so that the two cannot share a mistake.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Florence2Config as TorchConfig
from transformers import Florence2ForConditionalGeneration

from florence2_jax.conversion.names import LOGITS_BIAS
from florence2_jax.text.hugging_face import save_hugging_face
from florence2_jax.text.tokenizer import Tokenizer

IMAGE_SIZE = (96, 64)
MAX_POSITIONS = 40

VISION = dict(
    depths=[1, 1, 2, 1],
    embed_dim=[8, 16, 24, 32],
    num_heads=[1, 2, 3, 4],
    num_groups=[1, 2, 3, 4],
    window_size=2,
    projection_dim=32,
    drop_path_rate=0.0,
)
TEXT = dict(
    model_type="bart",
    d_model=32,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=MAX_POSITIONS,
    bos_token_id=0,
    pad_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=2,
)

_MICROSOFT = (
    (r"^model\.vision_tower", "vision_tower"),
    (r"(convs\.\d)\.conv", r"\1.proj"),
    (r"conv([12])\.", r"conv\1.fn.dw."),
    (r"(window|channel)_attn\.", r"\1_attn.fn."),
    (r"spatial_block\.norm1", "spatial_block.window_attn.norm"),
    (r"channel_block\.norm1", "channel_block.channel_attn.norm"),
    (r"ffn\.(fc\d)", r"ffn.fn.net.\1"),
    (r"norm2", "ffn.norm"),
    (r"^model\.multi_modal_projector\.image_projection\.weight", "image_projection"),
    (r"^model\.multi_modal_projector\.image_position_embed", "image_pos_embed"),
    (r"^model\.multi_modal_projector\.", ""),
    (r"^model\.language_model", "language_model.model"),
    (r"^lm_head", "language_model.lm_head"),
)


def microsoft_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of transformers as Microsoft's model would have it."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _MICROSOFT:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.T.contiguous() if name == "image_projection" else tensor
    renamed[LOGITS_BIAS] = torch.zeros(1, len(state["lm_head.weight"]))
    return renamed


def microsoft_config(rows: int) -> dict:
    """A config.json with the keys of Microsoft's."""
    vision = dict(VISION) | dict(
        dim_embed=VISION["embed_dim"],
        model_type="davit",
        patch_size=[7, 3, 3, 3],
        patch_stride=[4, 2, 2, 2],
        patch_padding=[3, 1, 1, 1],
        patch_prenorm=[False, True, True, True],
        enable_checkpoint=False,
        visual_temporal_embedding=dict(type="COSINE", max_temporal_embeddings=100),
        image_pos_embed=dict(type="learned_abs_2d", max_pos_embeddings=50),
        image_feature_source=["spatial_avg_pool", "temporal_avg_pool"],
    )
    del vision["embed_dim"]
    text = TEXT | dict(vocab_size=rows, activation_function="gelu", scale_embedding=False)
    text |= dict(forced_bos_token_id=0, forced_eos_token_id=2, num_beams=3)
    text |= dict(no_repeat_ngram_size=3, early_stopping=True, normalize_before=False)
    del text["model_type"]
    return dict(
        model_type="florence2",
        architectures=["Florence2ForConditionalGeneration"],
        vision_config=vision,
        text_config=text,
        projection_dim=32,
        vocab_size=rows,
        torch_dtype="float16",
    )


def torch_model(rows: int, **text) -> Florence2ForConditionalGeneration:
    """A tiny model of transformers, every parameter random."""
    torch.manual_seed(0)
    config = TorchConfig(
        vision_config=VISION,
        text_config=TEXT | {"vocab_size": rows} | text,
        image_token_id=rows - 1,
    )
    model = Florence2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


def arrays(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tensors as numpy arrays."""
    return {name: tensor.detach().numpy() for name, tensor in state.items()}


def digests(tensors) -> dict[str, str]:
    """sha256 of every tensor, its dtype and shape included."""
    found = {}
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor)
        head = f"{array.dtype} {array.shape} ".encode()
        found[name] = hashlib.sha256(head + array.tobytes()).hexdigest()
    return found


def assert_equal_tensors(one, other) -> None:
    """Every tensor equal to the bit, the table of frames (recomputed) to a last bit of an angle."""
    frames = [name for name in one if "pos_idx_to_embed" in name]
    for name in frames:
        a, b = (np.asarray(t[name]).astype(np.float32) for t in (one, other))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 if one[name].dtype != "f4" else 2e-5)
        np.testing.assert_array_equal(a[0], b[0])  # The row that is used.
    one, other = digests(one), digests(other)
    for name in frames:
        del one[name], other[name]
    assert one == other


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = ["a red circle on a green square", "two blue stars", "What is in the image?"]
    return Tokenizer.train(texts, vocab_size=320)


@pytest.fixture(scope="session")
def oracle(tokenizer) -> Florence2ForConditionalGeneration:
    """transformers' model for the tokenizer."""
    return torch_model(len(tokenizer))


def _processor_files(tokenizer: Tokenizer, folder: Path) -> None:
    save_hugging_face(
        tokenizer, folder, image_size=IMAGE_SIZE, num_image_tokens=7, max_length=MAX_POSITIONS
    )


@pytest.fixture(scope="session")
def hf_folder(oracle, tokenizer, tmp_path_factory) -> Path:
    """As transformers saves it."""
    folder = tmp_path_factory.mktemp("hf") / "tiny-florence"
    oracle.save_pretrained(folder)
    _processor_files(tokenizer, folder)
    generation = dict(decoder_start_token_id=2, forced_bos_token_id=0, num_beams=2)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="session")
def microsoft_folder(oracle, tokenizer, tmp_path_factory) -> Path:
    """As Microsoft published it: a pickle of float16, no row for `<image>`."""
    folder = tmp_path_factory.mktemp("ms") / "tiny-microsoft"
    rows = len(tokenizer) - 1
    _processor_files(tokenizer, folder)
    state = microsoft_state(oracle.state_dict())
    for name in state:
        if state[name].shape[:1] == (rows + 1,):
            state[name] = state[name][:rows]
    state[LOGITS_BIAS] = torch.zeros(1, rows)
    state = {name: tensor.half().clone() for name, tensor in state.items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(microsoft_config(rows)))
    return folder

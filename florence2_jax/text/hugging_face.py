# SPDX-License-Identifier: Apache-2.0
"""The tokenizer and processor files of a Hugging Face folder, written without `transformers`.

`transformers.AutoProcessor.from_pretrained` opens them as a `Florence2Processor`.
"""

import json
from pathlib import Path
from typing import Any

from florence2_jax.text.fast import TOKENIZER_FILE
from florence2_jax.text.phrases import BANNED_PHRASES
from florence2_jax.text.tokenizer import BOS, EOS, IMAGE_TOKEN, PAD, UNK, Tokenizer
from florence2_jax.text.vocabulary import MASK_TOKEN
from florence2_jax.typing import Size

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as models/davit.py.
_BICUBIC = 3  # PIL's number for it.
_ANSWER_KINDS = """ocr phrase_grounding pure_text description_with_bboxes description_with_polygons
polygons bboxes description_with_bboxes_or_polygons""".split()


def save_hugging_face(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    image_size: Size,
    num_image_tokens: int,
    max_length: int,
) -> None:
    """Writes `tokenizer.json` and the configurations of tokenizer, image processor and processor.

    Args:
        tokenizer: of either kind.
        folder: made if needed; files of these names in it are replaced.
        image_size: `(width, height)` in pixels to which images are resized, as the model was
            trained; the aspect ratio is not kept and nothing is cropped.
        num_image_tokens: image tokens before the prompt, 577 at 768 x 768 (one per cell of the
            last feature map, and their mean).
        max_length: tokens of the longest text, the rows of the model's position table.

    Raises:
        UserError: for a SentencePiece unigram model, before anything is written.
    """
    if min(*image_size, num_image_tokens, max_length) <= 0:
        raise ValueError(f"sizes must be positive: {image_size}, {num_image_tokens}, {max_length}")
    fast = tokenizer.to_fast()
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    names |= {"cls_token": BOS, "sep_token": EOS}
    if fast.token_to_id(MASK_TOKEN) is not None:
        names["mask_token"] = MASK_TOKEN
    images = _image_processor(image_size, num_image_tokens)
    processor_class = {"processor_class": "Florence2Processor"}
    files: dict[str, Any] = {
        "special_tokens_map.json": names,
        "tokenizer_config.json": names
        | processor_class
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": {"image_token": IMAGE_TOKEN},
        },
        # Twice, since older releases of transformers know only the first.
        "preprocessor_config.json": images | processor_class,
        "processor_config.json": processor_class
        | {
            "image_processor": images,
            "num_additional_image_tokens": 0,
            "post_processor_config": _post_processor(),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_FILE).write_text(fast.to_str(pretty=True), encoding="utf-8")
    for name, content in files.items():
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _image_processor(size: Size, num_image_tokens: int) -> dict[str, Any]:
    sides = {"height": size[1], "width": size[0]}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "image_seq_length": num_image_tokens,
        "do_convert_rgb": True,  # Null in the released files, which fail on grey images.
        "do_resize": True,
        "size": sides,
        "resample": _BICUBIC,
        "do_center_crop": False,
        "crop_size": sides,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(_MEAN),
        "image_std": list(_STD),
    }


def _post_processor() -> dict[str, Any]:
    # Empty: patterns and thresholds are the class's own, which are those of the released models.
    config: dict[str, Any] = {kind: {} for kind in _ANSWER_KINDS}
    config["phrase_grounding"] = {"banned_grounding_tokens": sorted(BANNED_PHRASES)}
    return config

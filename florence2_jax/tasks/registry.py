# SPDX-License-Identifier: Apache-2.0
"""The tasks: one row each, released ones first.

A row says how a task is asked (prompt and input), what it learns from, in which grammar it is
answered, how long a target may be and what the literature measures it with.

Source: tokens and prompts of the 15 released tasks are those of the released processor, to the
letter. The two rows marked as ours have no released prompt and are not weight-compatible.
"""

import dataclasses
from typing import Literal, TypeAlias

from florence2_jax.typing import UserError

Input: TypeAlias = Literal["none", "text", "region"]
Grammar: TypeAlias = Literal[
    "text",  # free text
    "region_text",  # text, then the box of the prompt once more
    "boxes",  # { label box {box} }
    "proposals",  # { box }
    "named_boxes",  # { name box }, the name repeated for every box
    "phrases",  # { phrase box {box} }, in caption order
    "quads",  # { text quad }
    "masks",  # polygon { <sep> polygon }, or { <poly> ... </poly> } for several instances
]
Source: TypeAlias = Literal[
    "text:brief", "text:detailed", "text:more_detailed",
    "region:category", "region:phrase", "region:brief", "region:text", "region:any",
    "mask:phrase", "mask:any", "reading", "grounding", "question",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the table."""

    token: str
    prompt: str  # With `{input}` where the input goes.
    input: Input
    learns_from: Source
    grammar: Grammar
    max_target_tokens: int  # Of the released 1,024 positions; runs may set less.
    metric: str
    is_released: bool = True

    @property
    def name(self) -> str:
        """`<REGION_TO_OCR>` -> `region_to_ocr`: for files, tables and metrics."""
        return self.token.strip("<>").lower()


_ROWS = (
    # token, prompt, input, learns from, grammar, longest target, metric
    ("CAPTION", "What does the image describe?", "none", "text:brief", "text", 64, "CIDEr"),
    ("DETAILED_CAPTION", "Describe in detail what is shown in the image.", "none",
     "text:detailed", "text", 128, "CIDEr"),
    ("MORE_DETAILED_CAPTION", "Describe with a paragraph what is shown in the image.", "none",
     "text:more_detailed", "text", 256, "CIDEr"),
    ("OD", "Locate the objects with category name in the image.", "none",
     "region:category", "boxes", 1000, "box AP"),
    ("DENSE_REGION_CAPTION", "Locate the objects in the image, with their descriptions.", "none",
     "region:brief", "boxes", 1000, "dense-caption AP"),
    ("REGION_PROPOSAL", "Locate the region proposals in the image.", "none",
     "region:any", "proposals", 1000, "AR"),
    ("OCR", "What is the text in the image?", "none", "reading", "text", 512, "word F1"),
    ("OCR_WITH_REGION", "What is the text in the image, with regions?", "none",
     "region:text", "quads", 1000, "end-to-end h-mean"),
    ("CAPTION_TO_PHRASE_GROUNDING", "Locate the phrases in the caption: {input}", "text",
     "grounding", "phrases", 1000, "R@1 at IoU 0.5"),
    ("OPEN_VOCABULARY_DETECTION", "Locate {input} in the image.", "text",
     "region:category", "named_boxes", 1000, "box AP"),
    ("REFERRING_EXPRESSION_SEGMENTATION", "Locate {input} in the image with mask", "text",
     "mask:phrase", "masks", 1000, "mIoU, oIoU"),
    ("REGION_TO_SEGMENTATION", "What is the polygon mask of region {input}", "region",
     "mask:any", "masks", 1000, "mIoU"),
    ("REGION_TO_CATEGORY", "What is the region {input}?", "region",
     "region:category", "region_text", 32, "accuracy"),
    ("REGION_TO_DESCRIPTION", "What does the region {input} describe?", "region",
     "region:brief", "region_text", 64, "CIDEr"),
    ("REGION_TO_OCR", "What text is in the region {input}?", "region",
     "region:text", "region_text", 64, "word accuracy"),
)  # fmt: skip

_OUR_ROWS = (
    # The bare question, as the fine-tuned models of the community ask it.
    ("VQA", "{input}", "text", "question", "text", 32, "VQA accuracy"),
    # The released models reuse open-vocabulary detection, which also names what it finds.
    ("REFERRING_EXPRESSION_COMPREHENSION", "Which region does {input} refer to?", "text",
     "region:phrase", "proposals", 64, "accuracy at IoU 0.5"),
)  # fmt: skip


def _task(row: tuple, *, is_released: bool) -> Task:
    fields = ("prompt", "input", "learns_from", "grammar", "max_target_tokens", "metric")
    values = dict(zip(fields, row[1:], strict=True))
    return Task(token=f"<{row[0]}>", is_released=is_released, **values)


TASKS: dict[str, Task] = {
    task.token: task
    for task in (
        *(_task(row, is_released=True) for row in _ROWS),
        *(_task(row, is_released=False) for row in _OUR_ROWS),
    )
}


def get_task(token: str) -> Task:
    """The row of `<OD>`, also found as `OD` or `od`. Raises UserError naming all tasks."""
    wanted = f"<{token.strip('<> ').upper()}>"
    if wanted not in TASKS:
        raise UserError(f"unknown task {token!r}; the tasks are {' '.join(TASKS)}")
    return TASKS[wanted]


def prompt_text(task: Task, text_input: str = "") -> str:
    """The English sentence the model is asked with.

    Args:
        text_input: for input kind "text" a caption, expression, question, or names joined by
            `<and>`; for "region" four location tokens; empty for "none".

    Raises:
        UserError: if an input is missing, or given to a task that takes none.
    """
    if task.input == "none" and text_input:
        raise UserError(f"{task.token} takes no input, got {text_input!r}")
    if task.input != "none" and not text_input.strip():
        what = "a region (four <loc_N>)" if task.input == "region" else "a text"
        raise UserError(f"{task.token} needs {what} as its input (--text)")
    return task.prompt.replace("{input}", text_input)

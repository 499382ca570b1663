# SPDX-License-Identifier: Apache-2.0
"""A short way to write a question, its truth and its answer."""

import pytest

from florence2_jax.data.examples import Example
from florence2_jax.evaluation.scored import Scored
from florence2_jax.tasks.answers import BoxRegion, RegionsAnswer, TextAnswer
from florence2_jax.tasks.registry import get_task


def region_of(thing):
    """`("cat", (0, 0, 9, 9))` or `(0, 0, 9, 9)` as a box region; regions as they are."""
    if not isinstance(thing, tuple):
        return thing
    label, box = thing if isinstance(thing[0], str) else ("", thing)
    return BoxRegion(label=label, box=box)


@pytest.fixture(scope="session")
def ask():
    """`ask(task, truth, answer)`: texts are strings, regions are lists."""

    def make(
        token, truth, answer, *, size=(100, 100), image_id="image", text_input="", crowds=()
    ) -> Scored:
        task = get_task(token)
        if isinstance(answer, str):
            references = tuple(truth)
            example = Example(
                task=task,
                text_input=text_input,
                text=references[0] if references else "",
                references=references,
            )
            reply = TextAnswer(task=task.token, text=answer)
        else:
            regions = tuple(map(region_of, truth))
            example = Example(task=task, text_input=text_input, regions=regions, crowds=crowds)
            reply = RegionsAnswer(task=task.token, regions=tuple(map(region_of, answer)))
        return Scored(example=example, answer=reply, size=size, image_id=image_id)

    return make

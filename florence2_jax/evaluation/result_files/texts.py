# SPDX-License-Identifier: Apache-2.0
"""Texts by id, where no benchmark has a format: page reading, categories of regions.

Truth and predictions: a JSON list or JSON lines of `{"id": ..., "text": "..."}`; in a truth "text"
may be a list of texts that would all be right. Every id of the truth needs a prediction, which may
be empty.
"""

from pathlib import Path

from florence2_jax.evaluation.result_files.entries import by_id, joined, read_entries


def read_texts(truth: Path, predictions: Path) -> list[tuple[str, list[str]]]:
    """The text and the references of each id.

    Raises:
        UserError: if a file is no such file, or ids are missing, unknown or there twice.
    """
    true = {id_: entry.texts("text") for id_, entry in by_id(read_entries(truth), "id").items()}
    found = {
        id_: entry.text("text") for id_, entry in by_id(read_entries(predictions), "id").items()
    }
    return [(text, texts) for texts, text in joined(true, found, "ids", predictions)]

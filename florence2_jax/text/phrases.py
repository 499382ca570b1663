# SPDX-License-Identifier: Apache-2.0
"""Phrases that are no object."""

_WORDS = """it I me mine you your yours he him his she her hers they them their theirs one
oneself we us our ours its myself yourself himself herself itself ourselves yourselves themselves
this that these those who whom whose which what all another any anybody anyone anything each
everybody everyone everything few many nobody none several some somebody someone something image
images the a an lots"""
BANNED_PHRASES = frozenset(_WORDS.split()) | {
    "each other", "one another", "the image", "a group", "other objects", "a set",
}  # fmt: skip
"""What the released processors drop from grounding answers, compared case by case."""

# SPDX-License-Identifier: Apache-2.0
"""Parameters chosen by patterns of their names: `image/*`, `text/decoder/layers/0/*`.

Patterns are those of fnmatch; `*` matches `/` too. A stack of scanned layers is one array, yet it
is named layer by layer: a run file does not depend on `model.scan`.
"""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from florence2_jax.typing import UserError

_STACK = re.compile(r"/(?:blocks|layers)/(?!\d)")


def is_stack(path: str) -> bool:
    """Whether an array leads with an axis of scanned layers."""
    return _STACK.search(path) is not None


def layer_names(path: str, depth: int) -> list[str]:
    """The names of an array: one, or in a stack of `depth` scanned layers one for each."""
    if not (match := _STACK.search(path)):
        return [path]
    return [f"{path[: match.end()]}{layer}/{path[match.end() :]}" for layer in range(depth)]


def matched(patterns: Iterable[str], leaves: Mapping[str, Any]) -> dict[str, dict[str, list[bool]]]:
    """What each pattern matches: pattern -> path -> for each name of that array, whether it does.

    Args:
        patterns: of the run file.
        leaves: path -> array or shape with leading layers, see `layer_names`.
    """
    found: dict[str, dict[str, list[bool]]] = {}
    for pattern in patterns:
        rows = {
            path: [fnmatch.fnmatchcase(name, pattern) for name in names]
            for path, names in _names(leaves).items()
        }
        found[pattern] = {path: hits for path, hits in rows.items() if any(hits)}
    return found


def chosen(
    patterns: Iterable[str], leaves: Mapping[str, Any], place: str
) -> dict[str, dict[str, list[bool]]]:
    """As `matched`, and every pattern matches something.

    Args:
        place: the key of the run file, for errors.

    Raises:
        UserError: if a pattern matches nothing, with the nearest names.
    """
    found = matched(patterns, leaves)
    for pattern, rows in found.items():
        if not rows:
            near = _nearest(pattern, [name for each in _names(leaves).values() for name in each])
            raise UserError(f"{place}: {pattern!r} matches no name; did you mean {near}?")
    return found


def _names(leaves: Mapping[str, Any]) -> dict[str, list[str]]:
    return {path: layer_names(path, leaf.shape[0]) for path, leaf in leaves.items()}


def whole(
    patterns: Iterable[str], leaves: Mapping[str, Any], place: str, *, remedy: str
) -> frozenset[str]:
    """Paths of the arrays that any pattern matches.

    Raises:
        UserError: as `chosen`, and if of a scanned stack only some layers are meant.
    """
    hits: dict[str, list[bool]] = {}
    for rows in chosen(patterns, leaves, place).values():
        for path, row in rows.items():
            before = hits.get(path, [False] * len(row))
            hits[path] = [a or b for a, b in zip(before, row, strict=True)]
    for path, row in hits.items():
        if not all(row):
            raise UserError(
                f"{place}: the patterns match {sum(row)} of the {len(row)} layers of {path}, which "
                f"model.scan keeps as one array; {remedy}"
            )
    return frozenset(hits)


def _nearest(pattern: str, names: list[str]) -> str:
    """Patterns that match something and look like one that does not."""
    known = set(names)
    for name in names:
        words = name.split("/")
        known |= {"/".join(words[:i]) + "/*" for i in range(1, len(words))}
        known |= {"*/" + "/".join(words[i:]) for i in (-1, -2)}
    ordered = sorted(known, key=lambda name: (len(name), name))
    near = difflib.get_close_matches(pattern, ordered, n=3, cutoff=0.5)
    near = near or sorted({f"{name.partition('/')[0]}/*" for name in names})
    return ", ".join(map(repr, near))

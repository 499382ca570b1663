# SPDX-License-Identifier: Apache-2.0
"""Parameters as nested dicts: by path, in parts, put together again."""

from collections.abc import Callable, Mapping
from typing import Any

Tree = dict[Any, Any]
"""Nested dicts of arrays; keys are names, and numbers where a model has a list."""


def flat(tree: Tree) -> dict[tuple, Any]:
    """Leaves by their keys."""

    def rows(tree: Any, keys: tuple) -> list[tuple[tuple, Any]]:
        if not isinstance(tree, dict):
            return [(keys, tree)]
        return [row for key, value in tree.items() for row in rows(value, (*keys, key))]

    return dict(rows(tree, ()))


def nest(leaves: Mapping[tuple, Any]) -> Tree:
    """The tree with these leaves."""
    tree: Tree = {}
    for keys, leaf in leaves.items():
        place = tree
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = leaf
    return tree


def by_path(tree: Tree) -> dict[str, Any]:
    """Leaves by their `/`-separated paths."""
    return {path_of(keys): leaf for keys, leaf in flat(tree).items()}


def path_of(keys: tuple) -> str:
    """`text/encoder/layers/0/...`."""
    return "/".join(map(str, keys))


def partition(tree: Tree, is_second: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Two trees that have the leaves between them; the second those whose path is chosen."""
    parts: tuple[dict, dict] = ({}, {})
    for keys, leaf in flat(tree).items():
        parts[is_second(path_of(keys))][keys] = leaf
    return nest(parts[0]), nest(parts[1])


def combine(tree: Tree, other: Tree | None) -> Tree:
    """All leaves of both; where both have one, that of the other."""
    return nest(flat(tree) | flat(other)) if other else tree

# SPDX-License-Identifier: Apache-2.0
"""The damage itself: a table of mutations, each a function of a random generator and the files."""

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

from .mutating import (
    IMAGE_SUFFIXES,
    NotApplicable,
    Packed,
    Special,
    Tree,
    data_of,
    packed,
)
from .odd_images import ODD_IMAGES

Mutation = Callable[[random.Random, Tree], Tree]
ESCAPES = (
    "../../outside/secret.jpg",
    "../outside/secret.jpg",
    "a/../../../outside/secret.jpg",
    "..\\..\\outside\\secret.jpg",
    "/etc/hostname",
    "..",
    ".",
    "/",
    "~/secret.jpg",
    "C:\\secret.jpg",
)


def mutate(rng: random.Random, tree: Tree) -> tuple[str, Tree]:
    """Names of one to three mutations, and the files after them."""
    names = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        for _ in range(50):  # All files may be gone already.
            name = rng.choices(list(MUTATIONS), [weight for weight, _ in MUTATIONS.values()])[0]
            try:
                changed = MUTATIONS[name][1](rng, tree)
            except NotApplicable:
                continue
            if changed != tree:
                names.append(name)
                tree = changed
                break
    return " + ".join(names), tree


def _pick(rng: random.Random, tree: Tree, *suffixes: str, but: tuple[str, ...] = ()) -> str:
    names = [name for name in tree if name.endswith(suffixes or "") and not name.endswith(but)]
    names = [name for name in names if not isinstance(tree[name], Special)]
    if not names:
        raise NotApplicable
    return rng.choice(names)


def _of_annotations(rng: random.Random, tree: Tree) -> str:
    return _pick(rng, tree, but=IMAGE_SUFFIXES)


# Bytes.


def _flipped(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _spliced(rng: random.Random, data: bytes) -> bytes:
    """Some bytes gone, twice there, or others among them."""
    start, stop = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    garbage = rng.randbytes(rng.choice((1, 4, 600))), b"\0" * 512, b"\n", data[start:stop] * 2
    return data[:start] + rng.choice((b"", *garbage)) + data[stop:]


def _recoded(rng: random.Random, data: bytes) -> bytes:
    """A text in another encoding, or one that says so and is not."""
    text = data.decode("utf-8", "replace")
    if rng.random() < 0.3:
        text = text.replace("a", rng.choice(("é", "漢", "\N{PILE OF POO}", "\u202e", "\0")))
    encoding = rng.choice(("utf-16", "utf-16-be", "utf-32", "latin-1", "utf-8-sig", "utf-7"))
    mark = rng.choice((b"", b"", b"\xff\xfe", b"\xef\xbb\xbf", b"\0"))
    return mark + text.encode(encoding, "replace")


def _on_data(change: Callable[[random.Random, bytes], bytes], *, of_images: bool = True):
    def mutation(rng: random.Random, tree: Tree) -> Tree:
        name = _pick(rng, tree) if of_images else _of_annotations(rng, tree)
        return tree | {name: change(rng, data_of(tree[name]))}

    return mutation


# Files that are none, or not there, or by another name.


def _special(rng: random.Random) -> Special:
    links = ("/dev/zero", "/etc/hostname", "../../outside/secret.jpg", "gone", ".", "..", "/")
    return rng.choice(
        [
            *(Special("link", target) for target in links),
            Special("pipe"),
            Special("folder"),
            Special("sparse", size=rng.choice((2**28 + 1, 2**33 + 1, 2**40))),
            Special("sparse", size=rng.choice((1, 511, 2**20))),
        ]
    )


def _replace_file(rng: random.Random, tree: Tree) -> Tree:
    name = _pick(rng, tree)
    special = _special(rng)
    if rng.random() < 0.1:
        special = Special("link", name.rpartition("/")[2])  # To itself.
    return tree | {name: special}


def _remove_file(rng: random.Random, tree: Tree) -> Tree:
    gone = _pick(rng, tree)
    return {name: content for name, content in tree.items() if name != gone}


def _rename_file(rng: random.Random, tree: Tree) -> Tree:
    old = _pick(rng, tree)
    folder, stem, suffix = re.fullmatch(r"((?:.*/)?)([^/]*?)(\.[^./]*)?", old).groups()  # type: ignore
    odd = ("\n", "\udcff", "\x1b[31m", " ", "é", "*", "%00", "\\", ".", "'\"<&>", "x" * 200)
    stem = rng.choice([stem + mark for mark in odd] + ["-rf" + stem, stem.upper()])
    suffix = rng.choice((suffix, suffix, suffix, (suffix or "").upper(), ""))
    new = f"{folder}{stem}{suffix or ''}"
    copies = {old: tree[old]} if rng.random() < 0.3 else {}
    return {k: v for k, v in tree.items() if k != old} | {new: tree[old]} | copies


def _add_file(rng: random.Random, tree: Tree) -> Tree:
    folder = _pick(rng, tree).rpartition("/")[0]
    suffix = rng.choice((".jpg", ".png", ".zip", ".md", ".npy", ".exe"))
    content = rng.choice((_special(rng), b"", rng.randbytes(99)))
    return tree | {f"{folder}/zz{suffix}" if folder else f"zz{suffix}": content}


# Images.


def _odd_image(rng: random.Random) -> bytes:
    data = ODD_IMAGES[rng.choice(list(ODD_IMAGES))]
    return _flipped(rng, data) if rng.random() < 0.3 else data


def _replace_image(rng: random.Random, tree: Tree) -> Tree:
    return tree | {_pick(rng, tree, *IMAGE_SUFFIXES): _odd_image(rng)}


# Values in annotation files.


def _odd_value(rng: random.Random, old: Any) -> Any:
    if isinstance(old, bytes):
        return rng.choice((_odd_image(rng), _flipped(rng, old), old[: len(old) // 2]))
    nan, inf = float("nan"), float("inf")
    plain = [None, True, False, "", " ", "x", "NaN", "1e999", "\0", "\ud800", "a\nb", "é" * 300]
    numbers = [nan, inf, -inf, 0, -1, -5.5, 0.5, 1e308, 2**31, 2**63, 10**30, 10**400, -(10**30)]
    lists = [
        [],
        {},
        [[]],
        [None] * 4,
        [nan] * 4,
        [0, 0, 0, 0],
        [5, 5, -3, -3],
        "@DEEP@",
        "@DEEPER@",
    ]
    lists += [{"a": {"b": {}}}, [[1, 2], [3, 4]], {"size": [30, 40], "counts": "~~~"}]
    lists += [
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [30, 40], "counts": [-1, 1201]},
    ]
    kind = rng.choice(("plain", "number", "list", "escape", "own", "own", "own", "huge"))
    if kind == "own":
        return _odd_version(rng, old)
    if kind == "huge" and rng.random() < 0.5:
        return rng.choice((_ring(rng), [_ring(rng)], "x" * 10**6, [0] * 10**5))
    return rng.choice({"plain": plain, "number": numbers, "list": lists}.get(kind, list(ESCAPES)))


def _ring(rng: random.Random) -> list[float]:
    scale = rng.choice((40, 1e4, 1e38))
    return [rng.random() * scale for _ in range(2 * 10**5)]


def _odd_version(rng: random.Random, old: Any) -> Any:
    """The value, nearly."""
    if isinstance(old, bool) or old is None:
        return rng.choice((0, 1, "true", [old]))
    if isinstance(old, int | float):
        strings = (str(old), f" {old} ", f"{old}px", f"{old}.0", f"{old},0")
        return rng.choice((*strings, -old, old + 0.5, float(old), old * 10**6, [old], {"v": old}))
    if isinstance(old, str):
        texts = (
            old * 2,
            old[::-1],
            old.upper(),
            old + "\n",
            f" {old}\t",
            old + "\x07",
            "../" + old,
        )
        return rng.choice((*texts, "/" + old, old[:-1], [old], list(old), {"v": old}, len(old)))
    if isinstance(old, list):
        return rng.choice((old[:-1], old + old, old[::-1], [old], old * 500, dict(enumerate(old))))
    if isinstance(old, dict):
        return rng.choice(
            ([old], list(old), [*map(list, old.items())], str(old), dict(list(old.items())[1:]))
        )
    raise NotApplicable


def change_value(rng: random.Random, root: Any) -> Any:
    """A copy of nested lists and objects in which one thing is not what it was."""
    root = copy.deepcopy(root)
    node, key, parent = root, None, None
    while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.8):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    if parent is None:
        raise NotApplicable
    how = rng.choice(("replace", "replace", "replace", "delete", "twice", "sibling", "add"))
    if how == "replace":
        parent[key] = _odd_value(rng, node)
    elif how == "delete":
        del parent[key]
    elif how == "twice" and isinstance(parent, list):
        parent.insert(rng.randint(0, len(parent)), copy.deepcopy(node))
    elif how == "sibling" and isinstance(parent, list) and isinstance(node, dict) and node:
        other, field = rng.choice(parent), rng.choice(list(node))
        if not isinstance(other, dict) or field not in other:
            raise NotApplicable
        node[field] = copy.deepcopy(other[field])  # Such as an id that is another's.
    elif how == "add" and isinstance(parent, dict):
        parent[rng.choice(("", "x", "id", "image_id", "9" * 30, "é\0"))] = _odd_value(rng, node)
    elif isinstance(parent, list):
        parent.insert(rng.randint(0, len(parent)), _odd_value(rng, node))
    else:
        raise NotApplicable
    return root


def _change_structure(rng: random.Random, tree: Tree) -> Tree:
    names = [name for name, content in tree.items() if isinstance(content, Packed)]
    if not names:
        raise NotApplicable
    name = rng.choice(names)
    content: Any = tree[name]
    change = _change_member if name.endswith(".tar") else change_value
    return tree | {name: packed(name, change(rng, content.value))}


def _change_member(rng: random.Random, members: list[dict]) -> list[dict]:
    """An archive with a member that is not what it was."""
    members = [dict(member) for member in members]
    i = rng.randrange(len(members))
    member, suffix = members[i], "." + members[i]["name"].rpartition(".")[2]
    names = [escape + suffix for escape in ESCAPES] + ["a\nb" + suffix, suffix, "x" * 5000 + suffix]
    sizes = [
        b"77777777777\0",
        b"-0000000001\0",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"notanumber\0\0",
    ]
    sizes += [b"\x80" + b"\0" * 6 + b"\x7f" + b"\xff" * 4, b" " * 12, b"\0" * 12, b"00000000001\0"]
    how = rng.choice(("name", "type", "size", "data", "twice", "delete", "order"))
    if how == "name":
        member["name"] = rng.choice([*names, rng.choice(members)["name"]])
    elif how == "type":  # Links, devices, pipes, folders, sparse files, long names, pax headers.
        member["type"] = rng.choice("12345674SLKxgVN\0")
        member["link"] = rng.choice((*ESCAPES, members[i - 1]["name"]))
    elif how == "size":
        member["size"] = rng.choice(sizes)
    elif how == "data":
        member["data"] = _odd_data(rng, member)
    elif how == "twice":
        members.insert(rng.randint(0, len(members)), dict(member))
    elif how == "delete":
        del members[i]
    else:
        rng.shuffle(members)
    return members


def _odd_data(rng: random.Random, member: dict) -> bytes:
    if member["name"].endswith(IMAGE_SUFFIXES):
        return _odd_image(rng)
    if member["name"].endswith(".json"):
        return data_of(packed("a.json", change_value(rng, json.loads(member["data"]))))
    return rng.choice((_flipped, _spliced, _recoded))(rng, member["data"])


# Lines of words and numbers, and XML.


def _change_line(rng: random.Random, tree: Tree) -> Tree:
    name = _pick(rng, tree, ".jsonl", ".csv", ".txt", ".yaml")
    lines = data_of(tree[name]).decode("utf-8", "surrogateescape").split("\n")
    i = rng.randrange(len(lines))
    how = rng.choice(("field", "field", "field", "twice", "delete", "other", "join"))
    if how == "field":
        lines[i] = _odd_line(rng, lines[i])
    elif how == "twice":
        lines.insert(rng.randint(0, len(lines)), lines[i])
    elif how == "delete":
        del lines[i]
    elif how == "other":
        lines.insert(
            i, rng.choice(("", "\0", "x", "{", "[" * 10**5, "," * 10**5, '"', "#", "1 " * 9))
        )
    elif i:
        lines[i - 1 : i + 1] = [lines[i - 1] + lines[i]]
    return tree | {name: "\n".join(lines).encode("utf-8", "surrogateescape")}


def _odd_line(rng: random.Random, line: str) -> str:
    if line.startswith("{"):
        try:
            return _json_line(change_value(rng, json.loads(line)))
        except ValueError:  # It was damaged before.
            return line[: len(line) // 2]
    parts = re.split(r"([,\s:\[\]]+)", line)
    i = 2 * rng.randrange((len(parts) + 1) // 2)
    parts[i] = _odd_word(rng, parts[i])
    return "".join(parts)


def _json_line(value: Any) -> str:
    return data_of(packed("a.json", value)).decode()


def _odd_word(rng: random.Random, old: str) -> str:
    words = [
        "",
        "nan",
        "inf",
        "-1",
        "0",
        "1e400",
        "9" * 30,
        "9" * 5000,
        "0x1f",
        "1_000",
        "x" * 10**5,
    ]
    words += ["１", "\0", "'", '"', "\u202e", "-" + old, old * 2, f'"{old}"', old + ".5", *ESCAPES]
    if rng.random() < 0.05:
        return " ".join(f"{rng.random():.4f}" for _ in range(2 * 10**5))
    return rng.choice(words)


_LEAF = re.compile(r"<(\w+)>([^<]*)</\1>")
XML_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]>"
)
XML_FILE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY i SYSTEM "file:///etc/hostname">]>'


def _change_xml(rng: random.Random, tree: Tree) -> Tree:
    name = _pick(rng, tree, ".xml")
    text = data_of(tree[name]).decode("utf-8", "replace")
    leaves = list(_LEAF.finditer(text))
    if not leaves:
        raise NotApplicable
    leaf = rng.choice(leaves)
    tag, value = leaf.groups()
    how = rng.choice(("value", "value", "delete", "twice", "entity", "deep", "declared"))
    new = {
        "value": f"<{tag}>{_odd_word(rng, value)}</{tag}>",
        "delete": "",
        "twice": leaf[0] * rng.choice((2, 1000)),
        "entity": f"<{tag}>&i;</{tag}>",
        "deep": "<a>" * 10**5 + "</a>" * 10**5,
    }.get(how, leaf[0])
    text = text[: leaf.start()] + new + text[leaf.end() :]
    if how == "entity":
        text = rng.choice((XML_BOMB, XML_FILE)) + text
    if how == "declared":
        encoding = rng.choice(("utf-16", "ascii", "nonsense", "utf-7", "cp037", "idna"))
        text = f'<?xml version="1.0" encoding="{encoding}"?>{text}'
    return tree | {name: text.encode("utf-8", "replace")}


MUTATIONS: dict[str, tuple[int, Mutation]] = {
    "bytes flipped": (3, _on_data(_flipped)),
    "bytes flipped in annotations": (3, _on_data(_flipped, of_images=False)),
    "truncated": (2, _on_data(lambda rng, data: data[: rng.randrange(len(data) + 1)])),
    "bytes spliced": (2, _on_data(_spliced)),
    "bytes spliced in annotations": (2, _on_data(_spliced, of_images=False)),
    "another encoding": (2, _on_data(_recoded, of_images=False)),
    "noise": (1, _on_data(lambda rng, data: rng.randbytes(rng.choice((0, 1, 4096))))),
    "file replaced": (3, _replace_file),
    "file removed": (1, _remove_file),
    "file renamed": (2, _rename_file),
    "file added": (1, _add_file),
    "image replaced": (4, _replace_image),
    "structure": (12, _change_structure),
    "line": (10, _change_line),
    "xml": (10, _change_xml),
}
"""Name -> weight, and the mutation."""

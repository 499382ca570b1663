# SPDX-License-Identifier: Apache-2.0
"""The label ontology: names, their synonyms and parents, in a file with versions.

    version: 2
    names:
      - {name: vehicle}
      - {name: car, synonyms: [automobile, motor car], parent: vehicle}

The file is YAML or JSON. A workdir keeps every version it was given (`adopt`), and each audit says
by which one it was made. Names are compared without regard to case and blanks.
"""

import dataclasses
import difflib
import functools
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from florence2_jax.engine.auditing.frozen import audit_folder
from florence2_jax.records.journal import write_file
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Name:
    """A name of the ontology; `parent` is another one, empty at the top."""

    name: str
    synonyms: tuple[str, ...] = ()
    parent: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ontology:
    """Raises UserError if a name or synonym is said twice, or a parent is unknown or a circle."""

    version: int = 0
    names: tuple[Name, ...] = ()

    def __post_init__(self):
        seen: dict[str, str] = {}
        for name in self.names:
            for said in (name.name, *name.synonyms):
                key = _key(said)
                if not key:
                    raise UserError(f"ontology: an empty name or synonym at {name.name!r}")
                if key in seen:
                    raise UserError(
                        f"ontology: {said!r} is of {seen[key]!r} and of {name.name!r}; keep one"
                    )
                seen[key] = name.name
        for name in self.names:
            self._check_parents(name)

    def normalise(self, label: str) -> str:
        """The name that a label means; an unknown label without outer and double blanks."""
        return self._canonical.get(_key(label), " ".join(label.split()))

    def knows(self, label: str) -> bool:
        """Whether a label is a name or a synonym of one."""
        return _key(label) in self._canonical

    def parents(self, label: str) -> tuple[str, ...]:
        """Names above a label, the nearest first; none for what is unknown."""
        above, name = [], self._parents.get(self.normalise(label), "")
        while name:
            above.append(name)
            name = self._parents[name]
        return tuple(above)

    def unknown(self, labels: Iterable[str]) -> list[dict[str, Any]]:
        """Labels that mean no name: how often they are said, and the nearest names.

        The most frequent first.
        """
        counts = Counter(" ".join(label.split()) for label in labels if not self.knows(label))
        rows = []
        for label, num in counts.most_common():
            close = difflib.get_close_matches(_key(label), list(self._canonical), n=5, cutoff=0.5)
            nearest = list(dict.fromkeys(self._canonical[key] for key in close))[:3]
            rows.append({"label": label, "number": num, "nearest": nearest})
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the file has them."""
        return {
            "version": self.version,
            "names": [dataclasses.asdict(name) for name in self.names],
        }

    @functools.cached_property
    def _canonical(self) -> Mapping[str, str]:
        return {_key(s): name.name for name in self.names for s in (name.name, *name.synonyms)}

    @functools.cached_property
    def _parents(self) -> Mapping[str, str]:
        return {name.name: self.normalise(name.parent) for name in self.names}

    def _check_parents(self, name: Name) -> None:
        met, at = [name.name], name.parent
        while at:
            if not self.knows(at):
                raise UserError(f"ontology: parent {at!r} of {met[-1]!r} is no name of it")
            at = self.normalise(at)
            if at in met:
                raise UserError(f"ontology: {' > '.join([*met, at])} goes in a circle")
            met.append(at)
            at = self._parents[at]


NO_ONTOLOGY = Ontology()
"""Labels mean themselves."""


def read_ontology(path: Path) -> Ontology:
    """Reads a file. Raises UserError that says what in it is no ontology."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as YAML or JSON ({reason})") from error
    return _parse(values, path)


def adopt(directory: str | os.PathLike[str], ontology: Ontology) -> None:
    """Keeps a version in a workdir. Raises UserError if that version there says something else."""
    folder = audit_folder(directory) / "ontology"
    text = json.dumps(ontology.to_json(), indent=1, ensure_ascii=False)
    path = folder / f"{ontology.version:04d}.json"
    if path.is_file() and path.read_text("utf-8") != text:
        raise UserError(
            f"{path}: version {ontology.version} of the ontology says something else here; raise "
            "the version in your file when it changes"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, text)


def current(directory: str | os.PathLike[str]) -> Ontology:
    """The newest version that a workdir keeps; `NO_ONTOLOGY` where there is none."""
    paths = sorted((audit_folder(directory) / "ontology").glob("*.json"))
    return read_ontology(paths[-1]) if paths else NO_ONTOLOGY


def _parse(values: Any, path: Path) -> Ontology:
    def check(is_right: bool, what: str) -> None:
        if not is_right:
            raise UserError(f"{path}: {what}; see the example in docs/data_engine.md")

    check(isinstance(values, dict) and set(values) == {"version", "names"}, "needs version, names")
    version, rows = values["version"], values["names"]
    check(type(version) is int and 0 < version < 10_000, f"version {version!r} is no number 1-9999")
    check(isinstance(rows, list), "names is no list")
    names = []
    for row in rows:
        known = isinstance(row, dict) and {"name"} <= set(row) <= {"name", "synonyms", "parent"}
        check(known, f"a name has name, synonyms and parent, not {row!r:.80}")
        row = {"synonyms": [], "parent": ""} | row
        check(isinstance(row["synonyms"], list), f"{row['name']!r}: synonyms is no list")
        texts = [row["name"], row["parent"], *row["synonyms"]]
        check(all(isinstance(text, str) for text in texts), f"{row['name']!r}: all must be texts")
        synonyms = tuple(row["synonyms"])
        names.append(Name(name=row["name"], synonyms=synonyms, parent=row["parent"]))
    return Ontology(version=version, names=tuple(names))


def _key(label: str) -> str:
    return " ".join(label.split()).casefold()

# SPDX-License-Identifier: Apache-2.0
"""Imports point down the house only, and heavy ones stay out of the front door."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "florence2_jax"

LEVELS = (
    {"cli"},
    {"engine", "evaluation", "planning", "viewing"},
    {"training", "inference", "conversion"},
    {"data", "models"},
    {"records"},
    {"tasks"},
    {"text", "parallel"},
    {"geometry", "typing", "version"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = [path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 1]


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path: Path) -> set[str]:
    own = (n.split(".") for n in imported_modules(path) if n.startswith("florence2_jax."))
    return {parts[1] for parts in own} & LEVEL_OF.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = LEVEL_OF[path.relative_to(PACKAGE).parts[0]]
    above = {room for room in rooms(path) if LEVEL_OF[room] < own}
    assert not above, f"{path.name} imports from above: {above}"


def test_every_room_has_a_level():
    found = {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert found <= LEVEL_OF.keys()


def test_models_know_no_files_and_no_tokenizer():
    for path in (PACKAGE / "models").glob("*.py"):
        assert rooms(path) <= {"models", "parallel", "typing"}, path.name


def test_records_know_no_jax():
    for path in (PACKAGE / "records").rglob("*.py"):
        assert not {n for n in imported_modules(path) if n.split(".")[0] in ("jax", "flax")}


def test_nothing_private_of_jax():
    for path in FILES:
        assert not {n for n in imported_modules(path) if n.startswith("jax._src")}, path


def test_help_answers_at_once():
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "florence2_jax", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "commands:" in result.stdout
    heavy = [m for m in ("jax", "numpy", "tensorflow_datasets") if f"| {m}\n" in result.stderr]
    assert not heavy, f"--help imports {heavy}"
    assert time.perf_counter() - start < 10  # It takes 0.05 s; this only catches a hang.


def test_every_file_names_its_licence():
    root = PACKAGE.parent
    for folder in ("florence2_jax", "tests", "configs", "benchmarks", "launch"):
        for path in (root / folder).rglob("*.py"):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            is_empty = not path.read_text(encoding="utf-8").strip()
            assert is_empty or first == "# SPDX-License-Identifier: Apache-2.0", path

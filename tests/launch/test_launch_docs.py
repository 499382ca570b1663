# SPDX-License-Identifier: Apache-2.0
"""What docs/pods.md shows can be run, and what docs/troubleshooting.md quotes is said."""

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from launching import ROOT

from florence2_jax.cli.main import COMMANDS

PODS = (ROOT / "docs" / "pods.md").read_text("utf-8")
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
HEADS = re.findall(r"^\*\*.*\*\*.*$", TROUBLES, re.M)


def shown(prefix: str) -> list[list[str]]:
    """Commands of the page's blocks that begin with some words, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PODS, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(prefix)]


@pytest.mark.parametrize("words", shown("bash launch/"), ids=lambda words: " ".join(words[1:5]))
def test_every_launch_command_of_the_page_runs_dry(script, tools, words):
    assert "--dry-run" in words
    run = script(words[1].removeprefix("launch/"), *words[2:])
    assert run.returncode == 0 and run.stdout, run.stderr
    assert (tools / "calls").read_text() == ""


@pytest.mark.parametrize("words", shown("python launch/"), ids=lambda words: " ".join(words[1:4]))
def test_every_gke_command_of_the_page_runs_dry(words, capsys):
    spec = importlib.util.spec_from_file_location("gke_of_the_page", ROOT / words[1])
    assert spec and spec.loader and "--dry-run" in words
    gke = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gke)
    assert gke.main(words[2:]) == 0 and capsys.readouterr().out


def test_every_command_of_ours_that_is_named_is_there():
    for page in (PODS, TROUBLES):
        for command in re.findall(r"florence2-jax ([a-z]+) ", page):
            assert command in COMMANDS, command
    for words in shown("florence2-jax"):
        command = importlib.import_module(f"florence2_jax.cli.{words[1]}")
        (getattr(command, "parse", None) or command.parser().parse_args)(words[2:])


def test_every_key_of_the_run_file_that_is_named_is_there():
    from florence2_jax.training.config import RunConfig

    fields = {name: field.type for name, field in RunConfig.__dataclass_fields__.items()}
    for page in (PODS, TROUBLES):
        for section, key in re.findall(r"[`.]([a-z_]+)\.([a-z_]+)[`= ]", page):
            if section in fields and hasattr(fields[section], "__dataclass_fields__"):
                assert key in fields[section].__dataclass_fields__, f"{section}.{key}"


def test_every_file_that_is_named_is_there():
    for page in (PODS, TROUBLES):
        for name in re.findall(r"(?:launch|configs|benchmarks|docs)/[\w/]+\.(?:sh|py|md)", page):
            assert (ROOT / name).is_file(), name
        for name in re.findall(r"\]\(([\w.]+\.md)\)", page):
            assert (ROOT / "docs" / name).is_file(), name


def test_the_pages_say_that_no_tpu_was_there():
    assert "No TPU and no Google Cloud project was available to the authors" in PODS
    assert "not from runs of ours" in TROUBLES


# --- Quotations. ---


def said_by_python(folder: str) -> list[str]:
    """Every text in the source of a folder, with `…` for what is filled in."""
    texts = []
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (x.value if isinstance(x, ast.Constant) else "…" for x in node.values)
                texts.append("".join(map(str, parts)))
    return texts


def said_by_shell() -> list[str]:
    """Texts of the launch scripts, with `…` for variables and commands."""
    texts = []
    for path in (ROOT / "launch").rglob("*.sh"):
        text = path.read_text("utf-8").replace('" \\\n', '" ')
        for quoted in re.findall(r'"((?:[^"\\\n]|\\.)*)"', text):
            texts.append(re.sub(r"\$\{[^}]*\}|\$\([^)]*\)|\$\w+", "…", quoted))
    return texts


# Heads name whose words they are, if not ours; what is no quotation is without a code span at its
# beginning.
OTHERS = re.compile(
    r"\((JAX|libtpu|XLA|Linux|SSH|GKE|Cloud Storage FUSE|JAX, Orbax)[;)]|from gcloud"
)
OURS = [
    quoted
    for head in HEADS
    if head.startswith("**`") and not OTHERS.search(head)
    for quoted in re.findall(r"`([^`]+)`", head)
]


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Everything that is ours to say."""
    return [*said_by_python("florence2_jax"), *said_by_python("launch"), *said_by_shell()]


def test_the_page_quotes_the_package_and_the_launchers():
    assert len(OURS) > 30
    assert len(HEADS) == TROUBLES.count("\n**")  # Every entry is seen here.


@pytest.mark.parametrize("quoted", OURS)
def test_what_is_quoted_as_ours_is_in_the_source(said, quoted):
    wanted = re.compile(".*?".join(re.escape(part) for part in quoted.split("…")), re.S)
    assert any(wanted.search(text) for text in said), f"{quoted!r} is said nowhere"


def test_a_text_that_nobody_says_is_noticed(said):
    assert not any("the flux capacitor is at … K" in text for text in said)


def test_our_words_in_the_statuses_are_those_of_train():
    from florence2_jax.parallel import processes

    statuses = set(re.findall(r"^\| (\d+) \|", PODS, re.M))
    told = {"0", str(processes.STATUS_USER_ERROR), str(processes.STATUS_AGAIN)}
    assert statuses == told
    spec = importlib.util.spec_from_file_location(
        "keep_running", Path(ROOT) / "launch" / "tpu_vm" / "keep_running.py"
    )
    assert spec and spec.loader
    wrapper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wrapper)
    assert (wrapper.DONE, wrapper.USER_ERROR) == (0, processes.STATUS_USER_ERROR)

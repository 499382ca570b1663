# SPDX-License-Identifier: Apache-2.0
"""The image: its recipe agrees with the package. Docker itself is not run."""

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from launching import ROOT, environment

FOLDER = ROOT / "launch" / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
KINDS = {"tpu": "tpu", "cuda12": "cuda12", "cuda13": "cuda13", "cpu": ""}


def instructions() -> list[tuple[str, str]]:
    """`(name, arguments)` of the Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text("utf-8"), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


def of(name: str) -> list[str]:
    """The arguments of all instructions of a name."""
    return [rest for other, rest in instructions() if other == name]


def test_jax_has_the_extras_that_images_ask_for():
    known = importlib.metadata.metadata("jax").get_all("Provides-Extra") or []
    assert {extra for extra in KINDS.values() if extra} <= set(known)


@pytest.mark.parametrize("kind", KINDS)
def test_pip_installs_the_package_and_the_jax_of_the_kind(kind):
    (line,) = [text for text in of("RUN") if "pip install" in text]
    command = line[line.index("pip install") :]
    script = f"JAX_EXTRA={KINDS[kind]}; printf '%s\\n' {command.removeprefix('pip install')}"
    words = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    jax = f"jax[{KINDS[kind]}]" if KINDS[kind] else "jax"
    assert words.stdout.split() == ["--constraint", "/constraints.txt", ".", jax]


def test_the_tpu_image_has_what_the_extra_of_the_package_has():
    assert [re.split("[<>=]", text)[0] for text in PROJECT["optional-dependencies"]["tpu"]] == [
        "jax[tpu]"
    ]


def test_the_image_has_a_python_that_the_package_takes():
    version = next(rest for rest in of("ARG") if rest.startswith("PYTHON=")).partition("=")[2]
    least = PROJECT["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))
    assert all(re.match(r"python:\$\{PYTHON\}-slim", rest) for rest in of("FROM"))


def test_every_copied_file_is_there_and_is_sent_to_the_builder():
    sent = (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    copied = [rest for rest in of("COPY") if not rest.startswith("--from")]
    sources = {word for rest in copied for word in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in sources)
    assert {line[1:] for line in sent if line.startswith("!")} == sources
    assert sent.index("*") < min(sent.index(f"!{source}") for source in sources)


def test_what_the_package_is_built_from_is_copied():
    asked = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "setup.py"}
    first = of("COPY")[0].split()
    assert asked <= set(first) and "florence2_jax florence2_jax" in of("COPY")


def test_the_image_runs_the_command_itself_and_not_as_root():
    names = [name for name, _ in instructions()]
    assert json.loads(of("ENTRYPOINT")[0]) == ["florence2-jax"]  # No shell eats SIGTERM.
    assert "florence2-jax" in PROJECT["scripts"]
    assert of("USER") == ["florence"] and names.index("USER") < names.index("ENTRYPOINT")
    user = next(text for text in of("RUN") if "useradd" in text)
    assert user.split()[-1] == "florence"


def test_lists_of_packages_do_not_stay_in_a_layer():
    for text in of("RUN"):
        if "apt-get install" in text:
            assert "--no-install-recommends" in text and "rm -rf /var/lib/apt/lists/*" in text
            assert text.index("apt-get update") < text.index("apt-get install")


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_prints_the_build(script, kind):
    run = script("docker/build.sh", kind, "--dry-run")
    words = shlex.split(run.stdout)
    assert words[:2] == ["docker", "build"] and words[-1] == "."
    assert words[words.index("--file") + 1] == "launch/docker/Dockerfile"
    assert f"JAX_EXTRA={KINDS[kind]}" in words and f"florence2-jax:{kind}" in words
    args = {word.partition("=")[0] for word in words if "=" in word}
    assert args == {rest.partition("=")[0] for rest in of("ARG")}


def test_push_comes_after_the_build(script):
    tag = "us-docker.pkg.dev/p/images/florence2:1"
    run = script("docker/build.sh", "tpu", "--tag", tag, "--push", "--dry-run")
    assert run.stdout.splitlines()[1:] == [f"docker push {tag}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rocm"], "rocm: give tpu, cuda13, cuda12 or cpu"),
        (["tpu", "--python", "3.10"], "--python 3.10: 3.11 or newer"),
        (["tpu", "--tag", "Not An Image"], "--tag Not An Image: not the name"),
        (["tpu", "--tag"], "--tag needs a value"),
        (["tpu", "--push"], "--push: give --tag REGISTRY"),
        (["tpu", "--fast"], "--fast: no such option"),
    ],
)
def test_a_wrong_build_is_named(script, arguments, message):
    run = script("docker/build.sh", *arguments, "--dry-run")
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1


def test_without_docker_one_line_says_so(tmp_path):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name) or "/nowhere")
    env = environment(tmp_path) | {"PATH": str(tmp_path)}
    command = ["bash", str(Path(FOLDER) / "build.sh"), "cpu"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "docker is not installed" in run.stderr

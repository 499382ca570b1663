# SPDX-License-Identifier: Apache-2.0
"""How tests run the scripts of `launch/`."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(tools: Path) -> dict[str, str]:
    """With no way to an account of Google's, whatever is installed here."""
    inherited = {
        name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ
    }
    nowhere = str(tools / "no-account")
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return inherited | {"PATH": path, "CLOUDSDK_CONFIG": nowhere, "KUBECONFIG": nowhere}


def program(path: Path, text: str) -> None:
    """Writes an executable file."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)

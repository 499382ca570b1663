#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that is checked before a change lands: style, types, tests.
#   bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup_venv.sh
setup_venv "test"

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/pyright
# A process that crashes ends the run: pytest-xdist can wait for ever for the tests of a lost one.
.venv/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 --durations 30 --durations-min 5 "$@"

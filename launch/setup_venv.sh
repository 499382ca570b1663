# SPDX-License-Identifier: Apache-2.0
# Sourced by local.sh and test.sh: makes .venv with the package and the extras asked for.
#   setup_venv EXTRAS    e.g. "" or "test"
# PYTHON names the interpreter; by default the newest of 3.11 and 3.12 that is there.

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1; then
      printf '%s' "$candidate"
      return 0
    fi
  done
  say "florence2_jax needs Python 3.11 or newer, and none was found (tried: ${PYTHON:-python3.12" \
    "python3.11 python3 python}). Install it, or name it: PYTHON=/path/to/python3.11 bash $0"
  return 1
}

setup_venv() {
  local extras="$1" python stamp wanted
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || exit 1
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv || {
      rm -rf .venv
      say "python -m venv failed: on Debian and Ubuntu install the package python3-venv"
      exit 1
    }
  fi
  # Installing again costs half a minute, so it is done only when what is wanted has changed.
  stamp=.venv/installed
  wanted="$(.venv/bin/python -c 'import hashlib; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())')"
  if ! grep -qsx "$wanted $extras" "$stamp"; then
    say "installing florence2_jax${extras:+ with its extra \"$extras\"} (a few minutes at most)"
    .venv/bin/python -m pip install --quiet --editable ".${extras:+[$extras]}" || {
      say "pip could not install the packages, see above; a network or a package mirror is needed"
      exit 1
    }
    printf '%s\n' "$wanted $extras" >>"$stamp"
  fi
}

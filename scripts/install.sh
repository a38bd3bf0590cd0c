#!/bin/sh
# Make .venv with the pinned packages of a lock file, and print the progress. usage: install.sh PYTHON LOCK
set -eu
python=$1 lock=$2
if ! command -v "$python" >/dev/null 2>&1; then
  echo "There is no $python on this machine: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 up" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'; then
  echo "$("$python" --version) is not supported: askfolder needs Python 3.11 to 3.14. Name one: make PYTHON=/path/to/python3.13 up" >&2
  exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "This Python has no venv module: install it (on Debian and Ubuntu: apt install python3-venv) and try again." >&2
  exit 1
fi
[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || "$python" -m venv --clear .venv
total=$(grep -c '==' "$lock")
echo "Installing $total packages into .venv/ (once, about 600 MB) …"
# --no-deps: the lock is complete, and one package's metadata asks for gigabytes that are not needed (see pyproject.toml).
if ! {
  .venv/bin/python -m pip install --no-deps --disable-pip-version-check --require-hashes -r "$lock" 2>.venv/pip-errors ||
    echo 'PIP FAILED'
} | awk -v total="$total" '
  /^(Collecting|Requirement already)/ { n++; name = $1 == "Collecting" ? $2 : $4; sub(/==.*/, "", name); printf "\r  [%d/%d] %-40s", n, total, name; fflush() }
  /^Installing collected/ { printf "\r  %-52s", "unpacking …"; fflush() }
  /^PIP FAILED/ { failed = 1 }
  END { printf "\r%-60s\r", ""; exit failed }'; then
  grep -v -i '^warning' .venv/pip-errors >&2 || true
  echo "The packages could not be installed (the lines above are from pip). Check the network and any proxy, then run the same command again." >&2
  exit 1
fi

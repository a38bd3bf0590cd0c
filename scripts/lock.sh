#!/bin/sh
# Re-pins the lock files from pyproject.toml (needs uv: pip install uv). No registry's address is written into them.
set -e
for group in "" dev; do
  out=requirements${group:+-$group}.lock
  uv pip compile pyproject.toml ${group:+--group $group} --universal --generate-hashes --no-emit-index-url \
    --no-emit-find-links --no-header --no-annotate --python-version 3.11 -q -o "$out" "$@"
  sed -i.bak -E \
    -e "s/ and \(sys_platform == 'darwin' or sys_platform == 'linux'\)//" \
    -e "s/ ; python_full_version < '3.15'( \\\\)?\$/\1/" \
    -e "s/ ; python_full_version < '3.15' and / ; /" "$out"
  rm "$out.bak"
done

#!/usr/bin/env bash
# Resolves pyproject.toml for all its versions of Python at once and writes a lock for each use beside this script.
#     lock.sh UV [--upgrade]
# What is locked keeps its version; with --upgrade everything gets the newest one that pyproject.toml allows.
set -euo pipefail
uv=$(realpath "$1")
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pins=
if [ "${2-}" != --upgrade ]; then
  pins=$(sed -n 's/ --hash=.*//; s/.*==.*/"&",/p' ./*.txt | tr '\n' ' ')
fi
# A version of its own spares the build that would find it out.
sed "s/^dynamic = .*/version = \"0\"/; s/^\[tool.uv\]/&\nconstraint-dependencies = [$pins]/" ../pyproject.toml \
  >"$work/pyproject.toml"
"$uv" lock --quiet --project "$work"

# write NAME LOWER OPTION...: one line for each package that LOWER and what that builds on do not have.
write() {
  local name=$1 lower=$2
  shift 2
  "$uv" export --quiet --frozen --project "$work" --no-emit-project --no-header --no-annotate "$@" |
    sed -E ':a; /\\$/ { N; s/ *\\\n */ /; ta }
      s/( ;| and) platform_machine == [^-]* and sys_platform == .linux.//' >"$work/$name.all"
  {
    if [ "$lower" ]; then
      echo "-r $lower.txt"
      grep -vxFf "$work/$lower.all" "$work/$name.all" || true
    else
      cat "$work/$name.all"
    fi
  } >"$work/$name.txt"
}

write base ""
write train base --extra train
write gpu train --extra gpu
write dev train --extra train --extra dev
write bench dev --extra train --extra dev --extra bench
write torch bench --extra train --extra dev --extra bench --extra torch
write remote base --extra remote
write engines base --extra engines
write uv "" --only-group uv
mv "$work"/*.txt .

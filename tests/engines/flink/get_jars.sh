#!/usr/bin/env bash
# Fetches what it takes to run Flink here, into DIR: job-server.jar from Maven Central, Flink's own jars from PyPI.
#     get_jars.sh DIR PYTHON
# Beam's ready-made job server of the pinned Beam version is taken where the registry has it. Where it has not, one is
# put together from the newest Beam runner known to be there, whose Flink is an older one, and this is said loudly.
set -euo pipefail
directory=$1 python=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$directory"

series=$("$python" -W ignore -c 'from apache_beam.options.pipeline_options import FlinkRunnerOptions
print(FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1])' 2>/dev/null)
beam=$("$python" -m pip show apache-beam 2>/dev/null | sed -n 's/^Version: //p')

ready_made() {
  command -v mvn >/dev/null && mvn -B -q dependency:copy -DoutputDirectory="$directory/ready-made" \
    -Dartifact="org.apache.beam:beam-runners-flink-$series-job-server:$beam" >"$directory/mvn.log" 2>&1
}

put_together() {
  cp "$here/pom.xml" "$directory/pom.xml"
  mvn -B -q -f "$directory/pom.xml" package >"$directory/mvn.log" 2>&1
}

if [ -f "$here/requirements-$series.txt" ] && ready_made; then
  mv "$directory"/ready-made/*.jar "$directory/job-server.jar"
  echo "Beam $beam, ready-made job server" >"$directory/version"
elif command -v mvn >/dev/null && put_together; then
  series=1.19
  mv "$directory"/target/flink-job-server-*.jar "$directory/job-server.jar"
  echo "Beam 2.62.0, job server put together" >"$directory/version"
  echo "NOTE: the registry has no Flink job server of Beam $beam: testing with one of Beam 2.62.0 for Flink $series" >&2
else
  echo "NOTE: no Flink job server can be had (is mvn there?): $(tail -n 1 "$directory/mvn.log" 2>/dev/null)" >&2
  exit 1
fi
"$python" -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes --upgrade \
  --target "$directory" -r "$here/requirements-$series.txt"
rm -rf "$directory/target" "$directory/ready-made" "$directory/pom.xml"

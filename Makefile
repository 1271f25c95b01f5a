# `make demo` and `make test` need Python 3.10 to 3.13 and make, nothing else; each sets up .venv by itself.

# The newest one that is here and runs; `make PYTHON=… test` takes another. An existing .venv keeps its own.
PYTHON ?= $(or $(shell for python in python3.13 python3.12 python3.11 python3.10; do \
  $$python -c "" 2>/dev/null && echo $$python && break; done),$(error no Python 3.10 to 3.13 here; give PYTHON=PATH))
PY := .venv/bin/python
LOCKS := $(wildcard requirements/*.txt)
# A lock names everything: nothing is left for pip to resolve, which would stumble over newer versions than those locked.
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes

# Quiet TensorFlow's start-up chatter; errors still show.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo test test-slow test-faults test-gpu test-remote test-engines test-flink test-others lint bench bench-torch bench-quick lock clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

demo: .venv/train.stamp  ## corpus → dataset → training → test report, in a few minutes, into demo/
	$(PY) -m benchmarks.demo --output demo

test: .venv/dev.stamp lint  ## lint and the fast tests
	$(PY) -m pytest -n 2 --dist loadfile

test-slow: .venv/dev.stamp  ## the tests that take minutes: kills, several processes, whole-corpus equality
	$(PY) -m pytest -m slow --ignore tests/gpu --ignore tests/faults --ignore tests/fuzz --ignore tests/pipeline/verify/test_verify.py

test-faults: .venv/dev.stamp  ## break everything on purpose: kills, full disks, damaged inputs, datasets and checkpoints
	$(PY) -m pytest -n 2 -m "slow or not slow" tests/faults tests/fuzz tests/pipeline/verify/test_verify.py

test-gpu: .venv/dev.stamp  ## training, evaluation, prediction and export on this machine's GPUs, against its CPU
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES-all} $(PY) -m pytest -m slow --durations 10 tests/gpu

test-remote: .venv-remote/stamp  ## the job from and to S3 and Google Cloud Storage, emulated on this machine
	.venv-remote/bin/python -m pytest -m slow tests/remote

test-engines: .venv-engines/stamp  ## the job on Dask and on Beam's worker pool, from the installed package
	.venv-engines/bin/python -m pytest -m slow --durations 5 tests/engines/test_portable.py tests/engines/test_dask.py

test-flink: .venv-engines/flink/stamp  ## the job on Apache Flink, embedded and on a cluster; needs Java and Maven
	.venv-engines/bin/python -m pytest -m slow --durations 5 tests/engines/test_flink.py

test-others: .venv-engines/bin/prism .venv-engines/spark/job-server.jar  ## the job on Prism and Spark; needs Go, Java, Maven
	.venv-engines/bin/python -m pytest -m slow tests/engines/test_others.py

lint: .venv/dev.stamp  ## format, lint, types, dead code
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/vulture

bench: .venv/bench.stamp  ## every benchmark, ours against its peers, into benchmarks/results/; keep the machine quiet meanwhile
	$(PY) -m benchmarks.summary

bench-torch: .venv/torch.stamp bench  ## the same with PyTorch as one more peer, some gigabytes to install

bench-quick: .venv/bench.stamp  ## the same, rough figures in three minutes
	$(PY) -m benchmarks.summary --quick --output benchmarks/results/quick

lock: .venv-uv/stamp  ## resolve pyproject.toml into requirements/; UPGRADE=--upgrade for the newest of everything
	requirements/lock.sh .venv-uv/bin/uv $(UPGRADE)

clean:  ## remove what the other targets made, the virtual environment included
	rm -rf .venv .venv-remote .venv-engines .venv-uv demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Without TensorFlow and without hypothesis: the job needs neither.
.venv-%/stamp: requirements/%.txt $(LOCKS)
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) -r $<
	$(@D)/bin/python -m pip --disable-pip-version-check check
	touch $@

.venv-engines/flink/stamp: tests/engines/flink/get_jars.sh tests/engines/flink/pom.xml | .venv-engines/stamp
	bash $< $(@D) .venv-engines/bin/python
	touch $@

.venv-engines/bin/prism: | .venv-engines/stamp
	GOBIN=$(CURDIR)/$(@D) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$$(sed -n 's/^apache-beam==\([^ ]*\).*/\1/p' requirements/base.txt)

.venv-engines/spark/job-server.jar: tests/engines/spark/pom.xml | .venv-engines/stamp
	mkdir -p $(@D) && cp $< $(@D)/pom.xml && mvn -B -q -f $(@D)/pom.xml package
	mv $(@D)/target/spark-job-server-*.jar $@ && rm -rf $(@D)/target $(@D)/pom.xml

.venv/%.stamp: requirements/%.txt $(LOCKS)
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) $(PIP_INSTALL) -r $<
	$(PY) -m pip --disable-pip-version-check check
	touch $@

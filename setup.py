"""Packaging: `pip install .` is what a Beam worker needs; `pip install '.[train]'` adds what training needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^VERSION = "(.+)"$', (HERE / "pipeline/__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="two-headed-bert",
    version=VERSION,
    description="Stream a Chinese corpus, tokenized once, into one shared BERT with two heads.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["pipeline", "pipeline.*", "model", "model.*"]),
    py_modules=["run_preprocess", "run_train"],
    package_data={
        "model.report": ["page.css", "page.html.jinja"],
        "pipeline.dataset": ["*.tsv"],
        "pipeline.sample_corpus": ["*.ini"],
    },
    entry_points={
        "console_scripts": [
            "two-headed-bert-preprocess = run_preprocess:command",
            "two-headed-bert-train = run_train:command",
            "two-headed-bert-inspect = pipeline.inspect:command",
            "two-headed-bert-verify = pipeline.verify.__main__:command",
            "two-headed-bert-plan = pipeline.plan:command",
            "two-headed-bert-evaluate = model.evaluate:command",
            "two-headed-bert-predict = model.predict:command",
            "two-headed-bert-export = model.export:command",
        ]
    },
    # No TensorFlow here: on a cluster it would cost every worker half a gigabyte and minutes of start-up.
    install_requires=[
        "apache-beam==2.77.*",
        "google-crc32c>=1.5",  # without a CRC library Beam and we would compute checksums in pure Python
        "numpy>=2.0",
        "protobuf>=4.22",  # parses the stored examples
        "tqdm>=4.66",
    ],
    extras_require={
        "train": [
            "jinja2>=3.1",
            "keras-bert==0.89.0",  # the reference for ids and for the encoder
            "matplotlib>=3.9",
            "scikit-learn>=1.5",
            "tensorboard==2.21.*",
            "tensorflow==2.21.*",
            "tf-keras==2.21.*",  # keras-bert needs Keras 2
        ],
        "bench": ["datasets", "psutil", "tensorflow-text==2.21.*", "tokenizers"],  # the peers
        "torch": ["torch", "transformers"],  # one more, of some gigabytes
        "remote": [
            "apache-beam[aws,gcp]",
            "build",
            "gcp-storage-emulator",
            "moto[server]",
            "pip",
            "pytest",
            "setuptools",
        ],
        "engines": ["apache-beam[dask]", "psutil", "pytest", "setuptools", "wheel"],  # engines that PyPI has
        "dev": ["hypothesis", "mypy", "pytest", "pytest-xdist", "ruff", "vulture"],
    },
)

"""Where tests and benchmarks find the real corpora, vocabulary and checkpoints, which are never in the repository."""

import os
from pathlib import Path

import pytest

DATA_DIR_VARIABLE = "TWO_HEADED_BERT_DATA"
NOT_FOUND = "real data not found"
NEEDS_ONNX = "needs tf2onnx and onnxruntime, which requirements-torch.txt has"
NEEDS_TRANSFORMERS = "needs transformers and torch, which requirements-torch.txt has"
DEFAULT_DATA_DIR = Path(__file__).resolve().parents[3] / "shared" / "data"

# Every file, and every directory, of texts.
TEXTS = (
    ("fulltext", "cnews_qianshuang_dl-exp.tsv"),
    ("fulltext", "cnews_ClydeKuo_cnn.tsv"),
    ("fulltext", "cnews_misc.tsv"),
    ("fulltext", "THUCNews"),
    ("thucnews_titles", "train.txt"),
    ("thucnews_titles", "dev.txt"),
    ("thucnews_titles", "extra_zhenhanbai.tsv"),
    ("thucnews_titles", "extra_maoqinluo.tsv"),
    ("hierarchical", "duee_single.tsv"),
    ("hierarchical", "duee_multi.tsv"),
    ("hierarchical", "smp_domain_intent.tsv"),
    ("hierarchical", "news_finance_auto_fulltext.tsv"),
    ("hierarchical", "toutiao_mlc_sample_multilabel.tsv"),
    ("hierarchical", "toutiao_all_cat.txt"),
)


def data_dir() -> Path:
    """Return where the real data is, or would be."""
    return Path(os.environ.get(DATA_DIR_VARIABLE, DEFAULT_DATA_DIR))


def real_data(*parts: str) -> Path:
    """Return a path inside the real data, or skip the calling test and say why.

    Args:
        *parts: path components below the data directory (environment variable `TWO_HEADED_BERT_DATA`).
    """
    path = data_dir().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{NOT_FOUND} at {path}; set {DATA_DIR_VARIABLE} to run this test")
    return path

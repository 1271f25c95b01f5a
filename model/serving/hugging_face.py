"""Write a finished run as a Hugging Face directory: the encoder as a `BertModel`, the heads beside it.

config.json, model.safetensors          the encoder, for `BertModel.from_pretrained`
vocab.txt, tokenizer_config.json        the vocabulary, for `BertTokenizer.from_pretrained`
heads.safetensors                       for each head, such as category: category.weight [classes, H], category.bias
heads.json                              labels in id order, pooling, and the number of tokens texts are cut to
README.md                               ten lines of Python that label a text with all of this
"""

import json
from pathlib import Path

import numpy as np

from model.bert.checkpoint import read_encoder_weights
from model.bert.config import HUGGING_FACE_CONFIG_NAME, BertConfig
from model.bert.directory import TENSORS_NAME
from model.bert.hugging_face import to_tensors
from model.bert.safetensors import write_tensors
from model.classifier import logits_name
from model.files import directory_written_whole
from model.run.finished import FinishedRun, load_run_vocab
from pipeline.dataset.info import VOCAB_NAME
from pipeline.tokenization.vocabulary import TOKENIZER_CONFIG_NAME, vocab_content

_POOLING_LINES = {
    "cls": "pooled = hidden[:, 0]",
    "max": 'pooled = hidden.masked_fill(batch["attention_mask"][..., None] == 0, -1e6).amax(dim=1)',
}
_README = """# A BERT with {heads}

The encoder is Hugging Face's `BertModel`; the heads are in `heads.safetensors`, their labels in `heads.json`.

```python
import json, torch
from safetensors.torch import load_file
from transformers import BertModel, BertTokenizer

encoder, tokenizer = BertModel.from_pretrained(".", add_pooling_layer=False), BertTokenizer.from_pretrained(".")
heads, about = load_file("heads.safetensors"), json.load(open("heads.json", encoding="utf-8"))
batch = tokenizer(["日本队夺冠"], truncation=True, max_length=about["max_len"], padding=True, return_tensors="pt")
hidden = encoder.eval()(**batch).last_hidden_state
{pooling}
for head, names in about["labels"].items():
    probabilities = (pooled @ heads[f"{{head}}.weight"].T + heads[f"{{head}}.bias"]).softmax(dim=-1)
    print(head, names[int(probabilities[0].argmax())], float(probabilities[0].max()))
```

It was trained on ids of another tokenizer: `BertTokenizer` makes one [UNK] of a word that the vocabulary does not cover
where that one makes one of each character, and texts had their line ends replaced by `。` and their tabs removed.
"""


def export_hugging_face(finished: FinishedRun, output: Path) -> None:
    """Write the directory of a finished run; all of it or nothing.

    Args:
        finished: the run.
        output: does not exist, or is empty.

    Raises:
        MissingInputError, InputFormatError: a file of the run is missing or damaged.
        OutputWriteError: the disk is full, read-only or not ours.
    """
    config = BertConfig.from_file(finished.run.bert_config)
    heads: dict[str, np.ndarray] = {}
    for head in finished.labels:
        kernel, bias = finished.model.get_layer(logits_name(head)).get_weights()
        heads |= {f"{head}.weight": kernel.T, f"{head}.bias": bias}
    pooling = finished.description.config.model.pooling
    about = {"labels": finished.labels, "pooling": pooling, "max_len": finished.max_len}
    tokenizer = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": not finished.cased,
        "model_max_length": config.max_position_embeddings,
    }
    texts = {
        HUGGING_FACE_CONFIG_NAME: _json(config.to_hugging_face()),
        TOKENIZER_CONFIG_NAME: _json(tokenizer),
        VOCAB_NAME: vocab_content(load_run_vocab(finished)).decode(),
        "heads.json": _json(about),
        "README.md": _README.format(
            heads=" and ".join(f"{len(names)} classes ({head})" for head, names in finished.labels.items()),
            pooling=_POOLING_LINES[pooling],
        ),
    }
    with directory_written_whole(output) as directory:
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")
        write_tensors(directory / TENSORS_NAME, to_tensors(read_encoder_weights(finished.model, config)))
        write_tensors(directory / "heads.safetensors", heads)


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"

"""The categories of the made-up corpus and the grammar of their documents, read from `words.ini`."""

import configparser
import dataclasses
import functools
from importlib import resources

WORDS = ("who", "does", "what", "feels", "scene", "named", "unit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topic:
    """One category of the corpus.

    Attributes:
        num_documents: how many documents THUCNews has in this category.
        neighbours: the categories whose sentences stray into this one's documents.
    """

    num_documents: int
    neighbours: tuple[str, ...]


@functools.cache
def read_sections() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return section → symbol → alternatives."""
    parser = configparser.RawConfigParser(delimiters="=")
    parser.read_string(resources.files("pipeline.sample_corpus").joinpath("words.ini").read_text(encoding="utf-8"))
    return {name: {key: tuple(text.split()) for key, text in parser[name].items()} for name in parser.sections()}


@functools.cache
def read_topics() -> dict[str, Topic]:
    """Return category → topic."""
    return {
        name: Topic(num_documents=int(words["documents"][0]), neighbours=words["neighbours"])
        for name, words in read_sections().items()
        if "documents" in words
    }


def read_grammar(topic: str | None) -> dict[str, tuple[str, ...]]:
    """Return symbol → alternatives: the forms, with the words of a topic and its fields, or (None) of small talk."""
    sections = read_sections()
    sources = [words for name, words in sections.items() if (topic or "small talk") in (name, *name.split())]
    return {
        **sections["forms"],
        **{symbol: sum((words.get(symbol, ()) for words in sources), ()) for symbol in WORDS},
    }

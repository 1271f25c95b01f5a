"""Search in printed text."""

import re


def first_group(pattern: str, text: str) -> str:
    """Return the first group of the first match, which there must be."""
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in {text!r}"
    return found[1]

"""Faults are noted while they are injected; at the end a table tells how many of each kind were, and what was said."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.workshop import Workshop, make_workshop

Note = Callable[[str, str], None]
_SHOWN = 150


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    """Return a function that notes one fault that was injected and dealt with: its kind, and what the program said."""
    return lambda kind, message: record_property("fault", [kind, message])


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return make_workshop(tmp_path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    kinds: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "fault":
                kinds.setdefault(value[0], []).append(value[1])
    if not kinds:
        return
    terminalreporter.section("faults injected = dealt with")
    for kind, messages in kinds.items():
        terminalreporter.line(f"{len(messages):6,}  {kind}: {messages[0][:_SHOWN]}")
    terminalreporter.line(f"{sum(map(len, kinds.values())):6,}  in all")

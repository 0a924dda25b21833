"""What all tests share: the closing list of what could not run and why."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent

pytest_plugins = ["kubo", "publisher", "two_hosts"]

# no test reaches for the public network or for a daemon of whoever runs the tests, unless it says so
os.environ["IPFS_STREAM_NB_GATEWAYS"] = os.environ["IPFS_STREAM_NB_ROUTERS"] = ""
os.environ["IPFS_PATH"] = os.devnull
os.environ.pop("IPFS_API", None)

# a test that is slow on a busy machine is not wrong; pytest-timeout ends one that hangs
settings.register_profile("project", deadline=None)
settings.load_profile("project")

# asyncio's debug mode warns of each callback that takes 0.1 s, as they do on a busy machine: that is
# not for tests that look at the log. Its errors are still heard, such as an exception that nobody retrieved
logging.getLogger("asyncio").setLevel(logging.ERROR)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the browser's tests last: Playwright keeps an event loop running in this thread from its first use on,
    and pytest-asyncio then could not run its own. They are not for `-n`, which takes the files in an order of its own."""
    items.sort(key=lambda item: "browser" in item.path.relative_to(HERE).parts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close the run with each reason for which tests did not run."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    terminalreporter.section("what could not run, and why")
    if not reasons:
        terminalreporter.write_line("nothing: every test ran")
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} test{'s' if count > 1 else ''}: {reason}")

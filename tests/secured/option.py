"""`pytest --secured`: the same tests, each server a secured broker; see `accounts.py`."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--secured", action="store_true", help="give each principal an account and a key of its own")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.secured:
        config.pluginmanager.register(Secured(config))


class Secured:
    """Has tests run on secured brokers, skips those that are about open mode, and tells how many were on such a one."""

    def __init__(self, config: pytest.Config) -> None:
        from tests.secured import accounts, proxies, strangers  # lazy: all of Natterjack

        self._root, self._accounts = config.rootpath, accounts
        self._instead = {"nats.connect": strangers.connect, "tests.chaos.proxy.Proxy.__aenter__": proxies.listen}
        self._runs_tests = config.option.dist == "no"  # so it is in workers, too

    def pytest_sessionstart(self) -> None:
        if not self._runs_tests:
            return
        paths = [str(self._root), str(self._root / "tests/secured"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._folder = tempfile.TemporaryDirectory(prefix="natterjack-secured-")
        self._accounts.secure_brokers(Path(self._folder.name))
        for name, ours in self._instead.items():
            patch(name, ours).start()

    def pytest_sessionfinish(self) -> None:
        if self._runs_tests:
            self._folder.cleanup()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marker = item.get_closest_marker("open_mode")
            if marker is not None:
                item.add_marker(pytest.mark.skip(reason=f"open mode: {marker.kwargs['reason']}"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._before = len(self._accounts.used)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        item.user_properties.append(("secured", len(self._accounts.used) > self._before))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        ran = Counter(
            dict(report.user_properties).get("secured")
            for reports in terminalreporter.stats.values()
            for report in reports
            if getattr(report, "when", "") == "teardown"
        )
        terminalreporter.write_line(f"secured: {ran[True]} tests on accounts, {ran[False]} without a broker of theirs")

"""For all tests: the repository root is not collected as a package; the summary says whether the ComfyUI tests ran."""

from __future__ import annotations

import pytest


class RootIsNoPackage:
    """The root's __init__.py is ComfyUI's door. pytest would import it, as the package that tests/ lies in."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_configure(config) -> None:
    config.pluginmanager.register(RootIsNoPackage())


def pytest_terminal_summary(terminalreporter) -> None:
    def count(*outcomes: str) -> int:
        reports = [report for outcome in outcomes for report in terminalreporter.stats.get(outcome, [])]
        return len({report.nodeid for report in reports if "tests/comfyui/" in getattr(report, "nodeid", "")})

    ran, skipped = count("passed", "failed", "error"), count("skipped")
    if ran or skipped:
        terminalreporter.write_line(f"ComfyUI tests: {ran} ran, {skipped} skipped.")
    else:
        terminalreporter.write_line("ComfyUI tests: none were collected.")

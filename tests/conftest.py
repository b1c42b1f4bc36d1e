"""For all tests: the repository root is not collected as a package; the summary says whether the ComfyUI tests ran."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def precision_is_put_back():
    """torch's precision of float32 products is one for the process; a test that leaves it changed changes all others on
    a CPU with AMX."""
    yield
    if (torch := sys.modules.get("torch")) and torch.get_float32_matmul_precision() != "highest":
        torch.set_float32_matmul_precision("highest")
        pytest.fail("The test left torch's precision of float32 products changed.")


@pytest.fixture(scope="session")
def exhaustive(request) -> bool:
    """Whether tests that try many cases of a kind try all of them."""
    return request.config.getoption("--exhaustive")


class RootIsNoPackage:
    """The root's __init__.py is ComfyUI's door. pytest would import it, as the package that tests/ lies in."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_addoption(parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="try all cases where a test else tries some of a kind")


def pytest_collection_modifyitems(config, items: list) -> None:
    """Tests marked `exhaustive` are left out without the option."""
    if config.getoption("--exhaustive"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


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

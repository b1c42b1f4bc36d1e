"""For all tests: the summary says in one line whether the tests against a real ComfyUI ran."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter) -> None:
    def count(*outcomes: str) -> int:
        reports = [report for outcome in outcomes for report in terminalreporter.stats.get(outcome, [])]
        return len({report.nodeid for report in reports if "tests/comfyui/" in getattr(report, "nodeid", "")})

    ran, skipped = count("passed", "failed", "error"), count("skipped")
    if ran or skipped:
        terminalreporter.write_line(f"ComfyUI tests: {ran} ran, {skipped} skipped.")
    else:
        terminalreporter.write_line("ComfyUI tests: none were collected.")

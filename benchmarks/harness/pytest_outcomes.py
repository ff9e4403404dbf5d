"""Runs tests for op_tests.py: `python pytest_outcomes.py NODE ...` in the tests' folder.

Prints a line of JSON, the outcome of each test by name, and exits with pytest's exit code. It
imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys

import pytest


class Outcomes:
    """A plugin of pytest: runs these nodes alone of the files it is given, and keeps how each test
    ended.

    Nodes are not named on the command line: pytest would refuse one whose file skips itself as a
    whole.
    """

    def __init__(self, nodes: list[str]) -> None:
        self.nodes = tuple(nodes)
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid.removeprefix("tests/").startswith(self.nodes)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.removeprefix("tests/")
        if self.outcomes.get(name) != "failed" and (report.when == "call" or report.outcome != "passed"):
            self.outcomes[name] = report.outcome


def main() -> int:
    del sys.path[0]  # this folder, whose modules are no top-level ones
    nodes = sys.argv[1:]
    files = list(dict.fromkeys(node.split("::")[0] for node in nodes))
    plugin = Outcomes(nodes)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # pytest's own words are no answer
    code = pytest.main(["-q", "--tb=no", "-p", "no:cacheprovider", *files], plugins=[plugin])
    answers.write(json.dumps(plugin.outcomes) + "\n")
    answers.flush()
    return int(code)


if __name__ == "__main__":
    sys.exit(main())

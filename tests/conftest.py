"""What all tests share. A run in which too few passed is red: a suite that skips itself must not
look like success.
"""

import importlib.util
import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # processes beside one another; tests of threads choose their number
    torch.set_num_threads(1)


# readline, which a worker imports, makes these up. Into a file, sentences are printed unbroken.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def modes():
    """A test that interrupts torch.no_grad may leave its mode behind."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


def pytest_addoption(parser):
    if importlib.util.find_spec("pytest_timeout") is None:  # whose setting pyproject.toml has
        parser.addini("timeout", "of no effect: pytest-timeout is not installed")
    parser.addoption("--min-passed", type=int, default=0, help="fail the run if fewer tests than this passed")


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    wanted = config.getoption("--min-passed")
    passed = len(terminalreporter.stats.get("passed", ()))
    if passed < wanted:
        terminalreporter.write_line(f"ERROR: {passed} tests passed, at least {wanted} were expected", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workerinput"):
        return  # knows its own share alone
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    passed = len(reporter.stats.get("passed", ())) if reporter else 0
    if exitstatus == pytest.ExitCode.OK and passed < session.config.getoption("--min-passed"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def threads():
    """torch.set_num_threads, put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def pin():
    """Pins one of vector_sets(); the processor chooses again afterwards."""
    import xmemk._C as extension

    yield extension._pin_vector_set
    extension._pin_vector_set("")

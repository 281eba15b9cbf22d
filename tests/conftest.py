"""What all tests share: a real Redis, which is never skipped in silence."""

from __future__ import annotations

import pytest

from safehold.testing.servers import ServerUnavailable, find_redis_server

NEEDS_SERVER = "needs_server"
_left_out = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-server",
        action="store_true",
        help="leave out the tests that need a real Redis; without this option a missing server is an error",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NEEDS_SERVER}: talks to a real Redis server")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--no-server"):
        return
    left_out = [item for item in items if _needs_server(item)]
    config.stash[_left_out] = len(left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _needs_server(item: pytest.Item) -> bool:
    return bool(item.get_closest_marker(NEEDS_SERVER)) or "redis_binary" in getattr(item, "fixturenames", ())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--no-server"):
        text = (
            f"NOT TESTED AGAINST A REAL REDIS (--no-server): {config.stash.get(_left_out, 0)} tests left out"
        )
        terminalreporter.write_line(text, red=True, bold=True)


@pytest.fixture(scope="session")
def redis_binary() -> str:
    """The server that runs here. There has to be one."""
    try:
        return str(find_redis_server().path)
    except ServerUnavailable as error:
        pytest.fail(f"{error}; or run pytest with --no-server", pytrace=False)

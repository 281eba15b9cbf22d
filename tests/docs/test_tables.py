"""The tables in the documentation are those that the code goes by."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from .pages import ROOT, pages


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tools" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_has_the_tables_of_the_code(
    tables: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that has changed is a page that has to; `python tools/tables.py` writes them."""
    status = tables.main(["--check"])
    assert (status, capsys.readouterr().out) == (0, "")


def test_every_table_is_on_a_page(tables: ModuleType) -> None:
    """A table that nobody shows, and a mark that nobody fills, are mistakes."""
    named = {name for page in pages() for name in re.findall(r"<!-- table: (.+?) -->", page.read_text())}
    assert named == set(tables.TABLES)


def test_what_somebody_has_written_into_a_table_is_found(tables: ModuleType) -> None:
    """The rest of a page stays as it is."""
    page = "before\n\n<!-- table: http -->\n| mine |\n<!-- end table -->\n\nafter\n"
    filled = tables.fill(page)
    assert filled != page
    assert filled.startswith("before\n\n<!-- table: http -->\n\n| what happens |")
    assert filled.endswith("|\n\n<!-- end table -->\n\nafter\n")
    assert "mine" not in filled
    assert tables.fill(filled) == filled


def test_table_that_there_is_not_is_a_mistake(tables: ModuleType) -> None:
    """A mark with a name that nobody knows is not passed over."""
    with pytest.raises(KeyError):
        tables.fill("<!-- table: nothing -->\n<!-- end table -->\n")

"""What the tools say to a word that they do not know: never that all is well."""

import importlib

import pytest
import typer
from typer.testing import CliRunner


@pytest.mark.parametrize("tool", ["claims", "readings", "prose_numbers", "loose_tolerances", "notebooks"])
def test_a_chapter_that_there_is_not_is_said_in_words_by_every_tool(tool: str):
    """And none of them says that all is well with no chapter at all."""
    module = importlib.import_module(f"tools.{tool}")
    app = typer.Typer()
    app.command()(module.minutes_command if tool == "notebooks" else module.main)
    for name in ("99", "7", "abc"):
        done = CliRunner().invoke(app, [name])
        assert done.exit_code == 2 and f"no chapter starts with '{name}'" in " ".join(done.output.split())
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


@pytest.mark.parametrize("tool", ["mutants", "cell_mutants"])
def test_a_name_that_no_mutant_has_is_said_and_is_no_success(tool: str):
    app = typer.Typer()
    app.command()(importlib.import_module(f"tools.{tool}").main)
    done = CliRunner().invoke(app, ["-k", "no-such-name"])
    assert done.exit_code == 1 and "no-such-name" in str(done.exception) + done.output

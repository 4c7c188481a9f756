"""Every command explains itself, and the README knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsearch.__main__ import main
from kdsearch.cli import app


def test_every_command_has_help_and_stands_in_the_readme(
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
    assert {"run", "distill", "report"} <= set(names)
    for name in names:
        assert f"kdsearch {name}" in readme
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert "Example: kdsearch" in " ".join(capsys.readouterr().out.split())

"""What holds for whatever a user gets wrong, of every command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from sim.__main__ import main as lorasim


class Refusal(Protocol):
    """`refused`, with all but the command given."""

    def __call__(self, words: list[str], *, main: Callable[[], None] = ..., prog: str = ...) -> str: ...


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    words: list[str],
    *,
    main: Callable[[], None] = lorasim,
    prog: str = "lorasim",
) -> str:
    """Run a command in `folder`, check everything that holds for all bad input, and return the line."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [prog, *words])
    before = set(folder.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{prog}: error: ")
    assert not [path for path in set(folder.rglob("*")) - before if path.is_file()]
    return line

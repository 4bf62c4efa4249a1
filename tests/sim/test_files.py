"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from sim.files import check_folder, write_atomically


def test_it_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.yaml"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_the_old_file_stays_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: type[BaseException]
) -> None:
    path = tmp_path / "file.yaml"
    write_atomically(path, b"old")

    def fail(self: Path, other: object) -> None:
        raise error

    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(error):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"/folder'$"):
        write_atomically(path, b"text")


def test_a_folder_that_takes_no_files_is_known_before_the_work(tmp_path: Path) -> None:
    check_folder(tmp_path / "not" / "there")
    check_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    file = tmp_path / "file"
    file.write_text("text")
    for path in (file, file / "deeper", Path("/proc/x")):
        with pytest.raises(OSError, match=f"{path}'$"):
            check_folder(path)
    assert list(tmp_path.iterdir()) == [file]

"""Files that are there whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path


def check_folder(path: Path) -> None:
    """Raise OSError if files cannot be written in the folder `path`: before the work that they would keep.

    A folder that is not there yet is not made; the nearest one above it is tried.
    """
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    probe = nearest / f".{os.getpid()}"
    try:
        probe.touch()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it; creates the folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{os.getpid()}"
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        # It names the temporary file, which nobody has asked for.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)

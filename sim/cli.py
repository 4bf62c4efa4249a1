"""The one wrapper around every Hydra application of the project: errors in one line, exit statuses."""

import functools
import importlib
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sim.errors import UserError
from sim.garbage import leave_garbage_at_exit, rarely_collecting_garbage

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
CONFIG_PATH = "pkg://conf"
_at_end = ExitStack()
_MAY_SET_MODE = re.compile(r"[+~]*(hydra\.mode|hydra=|experiment)")
# Beginnings of lines in Hydra's messages that say nothing to a user.
_NOISE = ("full_key:", "object_type=", "reference_type=", "See ", "To append ", "^")


def hydra_entry(
    task: Callable[[DictConfig], Any],
    config_name: str,
    prog: str = "lorasim",
    translate: Callable[[list[str]], list[str]] = lambda given: given,
) -> None:
    """Run ``task`` as the Hydra application ``conf/<config_name>.yaml`` with the arguments in ``sys.argv``.

    What a user can mend (Hydra's own errors, UserError, a file that cannot be read or written) becomes one
    line ``lorasim: error: ...`` on standard error and exit status 2; an interruption one line and 130. Every
    other exception is a bug and keeps its traceback. ``task`` must be importable by name, for launchers that
    run jobs in other processes. ``translate`` makes Hydra's arguments of those that were given, where the
    command has a grammar of its own; it may raise UserError.
    """
    # Without it Hydra prints and swallows exceptions itself; with it they arrive here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    _import_neighbours()
    leave_garbage_at_exit()
    given = sys.argv[1:]
    try:
        sys.argv = [sys.argv[0], *translate(given)]
        _refuse_bad_flags()
        with warnings.catch_warnings():
            # Hydra turns an exception in a callback into a warning and carries on.
            warnings.filterwarnings("error", message=r"Callback \S+ raised", category=UserWarning)
            application = hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name=config_name)
            with _at_end, rarely_collecting_garbage(), _composing_once(), _reading_yaml_in_c():
                application(_Job(task))()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _exit(f"{prog}: interrupted", EXIT_INTERRUPTED)
    except (_Stop, Exception) as raised:
        error = raised.args[0] if isinstance(raised, _Stop) else raised
        error = raised.__context__ if isinstance(raised, UserWarning) else error
        if isinstance(error, BrokenPipeError):
            # The reader has gone; the interpreter must not fail once more while it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_BROKEN_PIPE)
        if not isinstance(error, Exception) or not is_users(error):
            raise
        _exit(f"{prog}: error: {one_line(error, given)}", EXIT_USER_ERROR)


def at_end(callback: Callable[[], object]) -> None:
    """Call ``callback`` when the application that runs now ends, in whatever way."""
    _at_end.callback(callback)


class _Stop(BaseException):
    """Carries an error that a user can mend past Hydra, which would add a line of its own.

    As an argument, for the context is lost on the way from another process.
    """


class _Job:
    """A task that raises _Stop in place of an error that a user can mend."""

    def __init__(self, task: Callable[[DictConfig], Any]) -> None:
        # Hydra looks for the application's module through the attributes that this copies.
        functools.update_wrapper(self, task)
        self.task = task

    def __call__(self, config: DictConfig) -> Any:
        """Run the task."""
        try:
            return self.task(config)
        except Exception as error:
            if not is_users(error):
                raise
            raise _Stop(error) from error


def one_line(error: Exception, given: Sequence[str] = ()) -> str:
    """Return what ``error`` says to a user in one line: what, where, and what would be accepted.

    ``given``: the arguments, which are quoted where the error does not say which of them it is about.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return _bad_yaml(error)
    if isinstance(error, OmegaConfBaseException):
        where = f"{error.full_key}: " if error.full_key else ""
        return "; ".join([f"{where}{_lines(error)[0]}", *_accepted_keys(error)])
    return "; ".join(_refused_override(error, given))


def _refused_override(error: Exception, given: Sequence[str]) -> list[str]:
    """Return the parts of what Hydra says about an override that it refuses."""
    if isinstance(error, MissingConfigException) and error.options:
        return [_lines(error)[0], f"accepted: {', '.join(error.options)}"]
    if isinstance(error, OverrideParseException):
        return [f"cannot read {error.override!r}", *_lines(error), "accepted: key=value"]
    if isinstance(error.__cause__, OmegaConfBaseException):
        return [_lines(error)[0], _lines(error.__cause__)[0], *_accepted_keys(error.__cause__)]
    return [*_lines(error), *([f"given: {shlex.join(given)}"] if given else [])]


def _bad_yaml(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Say which configuration file is not readable YAML, and in which line if that is known."""
    if isinstance(error, yaml.MarkedYAMLError):
        error = _as_read_in_python(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        where = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}"
        return f"{where}: not valid YAML: {error.problem}"
    # The decoder does not know which file it reads; Hydra's frame that opened the file does.
    frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
    name = next((values["full_path"] for values in frames if "full_path" in values), "configuration file")
    return f"{name}: not valid YAML: not text in UTF-8"


def _as_read_in_python(error: yaml.MarkedYAMLError) -> yaml.MarkedYAMLError:
    """Return what PyYAML's own reader says of a file that libyaml cannot read: it knows the line better."""
    name = "" if error.problem_mark is None else error.problem_mark.name
    try:
        with suppress(OSError), Path(name).open(encoding="utf-8") as file:
            yaml.safe_load(file)
    except yaml.MarkedYAMLError as in_python:
        return in_python
    return error


def _import_neighbours() -> None:
    """Import the rooms beside this one, in place of folders of the same names in the user's path."""
    root = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(0, root)
    for room in ("conf", "policies"):
        importlib.import_module(room)
    sys.path.remove(root)


@contextmanager
def _composing_once() -> Iterator[None]:
    """Spare Hydra one of two compositions, each a good part of the time that a short run takes.

    Before a job it composes the whole configuration only to see whether that sets ``hydra.mode``
    (`Hydra.get_mode`). Here experiments alone do, and what a user adds might: a setting of Hydra's, a folder.
    """
    get_mode = Hydra.get_mode

    def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        sources = self.config_loader.get_search_path().get_path()
        ours = all(s.path == CONFIG_PATH or s.provider in ("hydra", "schema") for s in sources)
        if ours and not any(_MAY_SET_MODE.match(override) for override in overrides):
            return None
        return get_mode(self, config_name, overrides)

    Hydra.get_mode = mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


@contextmanager
def _reading_yaml_in_c() -> Iterator[None]:
    """Let OmegaConf, which takes `yaml.SafeLoader`, read a run's files with libyaml where PyYAML has it."""
    in_python = yaml.SafeLoader
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", in_python)  # type: ignore[misc]
    try:
        yield
    finally:
        yaml.SafeLoader = in_python  # type: ignore[misc]


def _refuse_bad_flags() -> None:
    """Let Hydra's parser read the flags once, with its errors as UserError instead of a page of usage."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args()


def is_users(error: Exception) -> bool:
    """Say whether a user, and not a change of this code, can mend ``error``."""
    if isinstance(error, ValueError) and _is_raised_by_hydra(error):
        return True
    of_files = OSError | yaml.YAMLError | UnicodeDecodeError
    return isinstance(error, UserError | HydraException | OmegaConfBaseException | of_files)


def _is_raised_by_hydra(error: Exception) -> bool:
    """Say whether Hydra itself raised ``error``, as it does for flags that exclude each other."""
    # Of an error from another process there may be no traceback here.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("hydra.")


def _accepted_keys(error: OmegaConfBaseException) -> list[str]:
    """Return the keys beside the one that was not found, if that is what ``error`` is about."""
    parent = error.parent_node
    if not isinstance(error, ConfigKeyError | ConfigAttributeError) or not isinstance(parent, DictConfig):
        return []
    return [f"accepted: {', '.join(str(key) for key in parent if key != 'hydra')}"]


def _lines(error: BaseException) -> list[str]:
    """Return the lines of Hydra's message that help a user: nothing on its internals, no search path."""
    kept = []
    for line in (line.strip() for line in str(error).splitlines()):
        if line.startswith("Config search path"):
            break
        if line and not line.startswith(_NOISE):
            kept.append(line.split(", set env var HYDRA_FULL_ERROR")[0].rstrip(".:"))
    return kept or [type(error).__name__]


def _exit(message: str, status: int) -> NoReturn:
    # It takes as long to import as a tenth of a short run, and only errors and sweeps need it.
    from tqdm import tqdm  # noqa: PLC0415

    # In place of print, for a progress bar that is still shown.
    tqdm.write(message, file=sys.stderr)
    sys.exit(status)

"""Engines in processes of their own, so that several can share a GPU: started together, used in turn."""

import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

from sim.errors import UserError

STOP_S = 60


class EngineProcess:
    """A process that makes a worker and then does jobs with it, one after another.

    `make` is called in the process with `arguments`; what it returns is called with each job. Both are
    pickled.
    """

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=False)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until the worker is there. Raises UserError where it could not be made."""
        self._answer("did not start")

    def do(self, job: Any) -> Any:
        """Do a job and return its result. Raises UserError where it failed, or the process has ended."""
        with suppress(OSError):
            self._connection.send(job)
        return self._answer("failed")

    def stop(self) -> None:
        """End the process, if it has not ended, which gives back the GPU's memory."""
        with suppress(OSError):
            self._connection.send(None)
            self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answer(self, what: str) -> Any:
        try:
            succeeded, result = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise UserError(
                f"engine {self.name} {what}: exit status {self._process.exitcode}; see the messages above"
            ) from None
        if not succeeded:
            raise UserError(f"engine {self.name} {what}: {result}")
        return result


def _serve(connection: Connection, make: Callable[..., Callable[[Any], Any]], arguments: Any) -> None:
    worker: Callable[[Any], Any] | None = None
    job: Any = "start"
    while job is not None:
        try:
            if worker is None:
                worker, result = make(*arguments), None
            else:
                result = worker(job)
            connection.send((True, result))
        except Exception as error:  # The engine may well be able to go on with the next job.
            traceback.print_exc()
            connection.send((False, f"{type(error).__name__}: {error}"))
            if worker is None:
                return
        job = connection.recv()

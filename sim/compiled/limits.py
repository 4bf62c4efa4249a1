"""Where compiled code ends."""


class LeavesCompiledError(Exception):
    """A run has come to what only `sim.engine` knows, and is to be played by it from the start."""

"""Errors that a user can mend; the entry point prints each as one line and exits with status 2."""


class UserError(ValueError):
    """The user gave something impossible.

    The message is one line: what is wrong, where it was given, and what would be accepted.
    """


class DoesNotFit(UserError):
    """The configuration needs more memory than there is; in a sweep it becomes a row with ``status=oom``."""

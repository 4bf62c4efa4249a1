"""As many open connections as the system allows."""

import resource
from contextlib import suppress

WANTED = 65_536


def allow_many_open_files() -> None:
    """Raise the soft limit of open files, 1,024 on many systems, towards the hard one: a stream takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

"""What is wrong with a policy."""


class PolicyError(Exception):
    """A policy raised, returned something it must not, or lets a request starve.

    The message names the policy, what it did, and what it should have done.
    """

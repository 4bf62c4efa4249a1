"""The text of an output: the simulator knows how many tokens there are, not which."""


def words(first: int, last: int) -> str:
    """Return the text of the output's tokens ``first`` to ``last``, counted from 1: ``w1 w2 w3``.

    A token but the first begins with its space, so that the parts of a stream add up to the whole.
    """
    text = " ".join(f"w{number}" for number in range(first, last + 1))
    return text if first == 1 or not text else f" {text}"

"""An event for a given time, as light as SimPy takes one."""

from simpy import Environment
from simpy.events import NORMAL, Event, EventCallbacks, EventPriority


class Alarm(Event):
    """What SimPy asks of an event that has been triggered, and no more: nobody waits for it, or fails it."""

    _ok, _value = True, None

    def __init__(self, time_ns: int, callbacks: EventCallbacks) -> None:
        self.time_ns = time_ns
        self.callbacks = callbacks


def alarm(
    env: Environment, time_ns: int, now_ns: int, callbacks: EventCallbacks, priority: EventPriority = NORMAL
) -> Alarm:
    """Have `callbacks`, which SimPy only reads, called at `time_ns`; it is `now_ns`."""
    event = Alarm(time_ns, callbacks)
    env.schedule(event, priority, time_ns - now_ns)
    return event

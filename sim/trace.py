"""``trace.pftrace``: a run for https://ui.perfetto.dev, in Perfetto's own format.

A process for each replica; in it a lane each for the engine's host thread (with loads and activations inside
its steps), the GPU, every slot (which adapter it holds) and the loads beside the engine's work, and counters.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sim.adapter_log import AdapterLog, AdapterMove
from sim.adapters import AdapterEvent
from sim.errors import UserError
from sim.steps import StepRecord

SEQUENCE_ID = 1
_LANES = ("host thread", "GPU", "loader", "requests in the batch", "adapters in the batch")
_HOST, _GPU, _LOADER, _REQUESTS, _ADAPTERS = range(1, 6)
_FIRST_SLOT = len(_LANES) + 1


@dataclass(frozen=True)
class Span:
    """What the trace keeps of a step. Times are ns."""

    step: int
    schedule_ns: int
    launch_end_ns: int
    gpu_start_ns: int
    gpu_end_ns: int
    num_reqs: int
    num_tokens: int
    num_prefill_tokens: int
    num_adapters: int
    graph: str

    @property
    def kind(self) -> str:
        """What the step does."""
        if not self.num_prefill_tokens:
            return "decode"
        return "prefill" if self.num_prefill_tokens == self.num_tokens else "mixed"


@dataclass
class TraceLog:
    """Takes the steps of one replica; its adapters' moves are those of ``adapters``."""

    adapters: AdapterLog
    num_slots: int
    spans: list[Span] = field(default_factory=list)

    def on_step(self, record: StepRecord) -> None:
        """Add a step."""
        shape = record.shape
        times = (record.schedule_ns, record.launch_end_ns, record.gpu_start_ns, record.gpu_end_ns)
        sizes = (shape.num_reqs, shape.num_tokens, shape.num_prefill_tokens, shape.num_adapters)
        self.spans.append(Span(record.step, *times, *sizes, str(shape.graph)))

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Take no note: the adapters' log does."""


def perfetto_trace(replicas: Sequence[TraceLog], end_ns: int) -> bytes:
    """Return the trace of a run that ends at ``end_ns``, as a serialized ``perfetto.protos.Trace``."""
    stream = io.BytesIO()
    writer = _Writer(stream)
    for number, log in enumerate(replicas):
        _Replica(writer, number, log, end_ns).write()
    return stream.getvalue()


def check_perfetto() -> None:
    """Raise UserError where Perfetto's package is missing, before a run rather than after it."""
    _protobuf()


def _protobuf() -> Any:
    # An extra, which a run without a trace does not need; it takes a while to import.
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2  # noqa: PLC0415
        from perfetto.trace_builder import proto_builder  # noqa: PLC0415
    except ImportError as error:
        raise UserError(f"record.trace=true: {error}; expected: pip install 'lorasim[trace]'") from error
    return proto_builder, perfetto_trace_pb2.TrackEvent


class _Writer:
    """Writes packets; ``track`` is the identity of a lane."""

    def __init__(self, stream: io.BytesIO) -> None:
        builder, self._event = _protobuf()
        self._builder = builder.StreamingTraceProtoBuilder(stream)

    def process(self, track: int, pid: int, name: str) -> None:
        packet = self._builder.create_packet()
        packet.track_descriptor.uuid = track
        packet.track_descriptor.process.pid = pid
        packet.track_descriptor.process.process_name = name
        self._builder.write_packet(packet)

    def lane(self, track: int, parent: int, name: str, rank: int, counts: bool = False) -> None:
        packet = self._builder.create_packet()
        descriptor = packet.track_descriptor
        descriptor.uuid, descriptor.parent_uuid, descriptor.name = track, parent, name
        descriptor.sibling_order_rank = rank
        if counts:
            descriptor.counter.SetInParent()
        self._builder.write_packet(packet)

    def slice(
        self,
        track: int,
        name: str,
        times_ns: tuple[int, int],
        inside: Sequence[AdapterMove] = (),
        notes: Mapping[str, int | str] = MappingProxyType({}),
    ) -> None:
        """Write a slice, what happens inside it, and its end; ``notes`` are shown beside it."""
        packet = self._packet(times_ns[0], track, self._event.TYPE_SLICE_BEGIN, name)
        for key, value in notes.items():
            note = packet.track_event.debug_annotations.add()
            note.name = key
            if isinstance(value, int):
                note.int_value = value
            else:
                note.string_value = value
        self._builder.write_packet(packet)
        for move in inside:
            self.slice(track, f"{move.kind} {move.adapter}", (move.begin_ns, move.end_ns))
        self._builder.write_packet(self._packet(times_ns[1], track, self._event.TYPE_SLICE_END))

    def instant(self, track: int, name: str, time_ns: int) -> None:
        self._builder.write_packet(self._packet(time_ns, track, self._event.TYPE_INSTANT, name))

    def count(self, track: int, time_ns: int, value: int) -> None:
        packet = self._packet(time_ns, track, self._event.TYPE_COUNTER)
        packet.track_event.counter_value = value
        self._builder.write_packet(packet)

    def _packet(self, time_ns: int, track: int, kind: int, name: str | None = None) -> Any:
        packet = self._builder.create_packet()
        packet.timestamp, packet.trusted_packet_sequence_id = time_ns, SEQUENCE_ID
        packet.track_event.type, packet.track_event.track_uuid = kind, track
        if name is not None:
            packet.track_event.name = name
        return packet


class _Replica:
    """The lanes of one replica."""

    def __init__(self, writer: _Writer, number: int, log: TraceLog, end_ns: int) -> None:
        self._writer, self._number, self._log, self._end_ns = writer, number, log, end_ns
        # Identities are of the whole trace; a replica's are far from the next one's.
        self._process = 1 + number * (_FIRST_SLOT + log.num_slots + 1)

    def write(self) -> None:
        """Write everything."""
        self._descriptors()
        self._steps()
        self._slots()
        for move in self._log.adapters.moves:
            if move.duration_ns is None:
                self._writer.instant(self._process + _LOADER, f"{move.kind} {move.adapter}", move.end_ns)

    def _descriptors(self) -> None:
        self._writer.process(self._process, self._number + 1, f"replica {self._number}")
        for place, name in enumerate(_LANES, 1):
            counts = place in (_REQUESTS, _ADAPTERS)
            self._writer.lane(self._process + place, self._process, name, place, counts)
        for slot in range(self._log.num_slots):
            place = _FIRST_SLOT + slot
            self._writer.lane(self._process + place, self._process, f"slot {slot}", place)

    def _steps(self) -> None:
        """Write the host thread's lane, the GPU's and the counters."""
        moves = iter([move for move in self._log.adapters.moves if move.duration_ns])
        move = next(moves, None)
        for span in self._log.spans:
            inside = []
            while move is not None and move.begin_ns < span.launch_end_ns:
                inside.append(move)
                move = next(moves, None)
            times_ns = span.schedule_ns, span.launch_end_ns
            self._writer.slice(self._process + _HOST, f"step {span.step}", times_ns, inside)
            notes = {"step": span.step, "num_reqs": span.num_reqs, "num_tokens": span.num_tokens}
            notes |= {"num_prefill_tokens": span.num_prefill_tokens, "num_adapters": span.num_adapters}
            named: dict[str, int | str] = {**notes, "graph": span.graph}
            times_ns = span.gpu_start_ns, span.gpu_end_ns
            self._writer.slice(self._process + _GPU, span.kind, times_ns, notes=named)
            self._writer.count(self._process + _REQUESTS, span.gpu_start_ns, span.num_reqs)
            self._writer.count(self._process + _ADAPTERS, span.gpu_start_ns, span.num_adapters)

    def _slots(self) -> None:
        """Write which adapter each slot holds, from the end of its activation to its eviction."""
        held: dict[int, tuple[str, int]] = {}
        for move in self._log.adapters.moves:
            if move.slot is None:
                continue
            if move.kind == "activate":
                held[move.slot] = move.adapter, move.end_ns
            elif move.slot in held:
                self._slot(move.slot, *held.pop(move.slot), move.begin_ns)
        for slot, (adapter, since_ns) in held.items():
            self._slot(slot, adapter, since_ns, max(since_ns, self._end_ns))

    def _slot(self, slot: int, adapter: str, begin_ns: int, end_ns: int) -> None:
        self._writer.slice(self._process + _FIRST_SLOT + slot, adapter, (begin_ns, end_ns))

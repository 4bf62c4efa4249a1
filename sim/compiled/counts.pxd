# cython: language_level=3
cimport cython
from libcpp.vector cimport vector

from sim.compiled.scheduler cimport Plan, Scheduler
from sim.compiled.state cimport i64
from sim.compiled.tiers cimport Event


cdef struct Idle:
    # As in sim.steps.GpuIdle.
    i64 loading_ns, activation_ns, host_ns


@cython.final
cdef class Counts:
    cdef i64 start_ns, end_ns
    cdef bint has_end, keeps_steps
    cdef i64 num_output_tokens, num_steps, num_adapter_uses, num_swap_steps
    cdef i64[4] events
    cdef i64 compute_ns, loading_ns, activation_ns, host_ns
    cdef i64 gpu_free_ns, tokens_ns
    cdef vector[i64] gaps_ns, gap_counts
    cdef vector[i64] step, step_start_ns, step_end_ns, step_tokens
    cdef vector[int] step_requests

    cdef void on_step(
        self, i64 number, Plan plan, vector[Event]& events, i64 schedule_ns, i64 start_ns, i64 end_ns, Idle idle
    ) except *
    cdef void add_gpu_time(self, i64 start_ns, i64 end_ns, Idle idle) except *
    cdef i64 in_window_ns(self, i64 begin_ns, i64 end_ns) noexcept
    cdef void on_tokens(self, Plan plan, Scheduler scheduler, i64 now_ns) noexcept

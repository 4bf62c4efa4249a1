# cython: language_level=3
cimport cython
from libcpp.vector cimport vector

from sim.compiled.state cimport Request, i64


@cython.final
cdef class Plan:
    cdef vector[int] requests
    cdef vector[i64] tokens
    cdef vector[int] sampled
    cdef vector[int] adapters
    cdef i64 num_reqs, num_tokens, max_query_len, num_prefill_reqs, num_prefill_tokens
    cdef i64 attention_work, kv_tokens, num_lora_tokens, num_waiting
    cdef bint finishes

    cdef void clear(self) noexcept


@cython.final
cdef class Scheduler:
    cdef vector[Request] requests
    cdef vector[int] running
    cdef i64 num_waiting, num_free_blocks
    cdef i64 block_size, max_num_seqs, max_num_batched_tokens, max_model_len, threshold, max_loras
    cdef bint asynchronous, full_isl
    cdef int first_waiting, last_waiting
    cdef vector[int] first_of_adapter, last_of_adapter
    cdef vector[i64] in_step
    cdef i64 step
    cdef Plan spare

    cdef void know_adapter(self) noexcept
    cdef void add(self, int index) noexcept
    cdef Plan schedule(self, i64 now_ns)
    cdef void take_back(self, Plan plan) noexcept
    cdef bint schedule_running(self, Plan plan, i64* token_budget) except -1
    cdef bint allocate(self, Request* request, i64 num_new_tokens, bint whole) noexcept
    cdef void use(self, Plan plan, int adapter) noexcept
    cdef void admit(self, Plan plan, i64 token_budget, i64 now_ns) noexcept
    cdef int candidate(self, Plan plan) noexcept
    cdef void leave_line(self, int index) noexcept
    cdef void sum_up(self, Plan plan) noexcept
    cdef void take_tokens(self, Plan plan, vector[int]& finished) noexcept
    cdef void finish(self, int index) noexcept
    cdef void abort(self, int index) noexcept
    cdef void release(self, int index) noexcept

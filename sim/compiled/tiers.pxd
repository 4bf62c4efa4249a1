# cython: language_level=3
cimport cython
from libcpp.vector cimport vector


cdef enum Kind:
    LOAD, ACTIVATE, EVICT_HOST, EVICT_SLOT


cdef struct Event:
    Kind kind
    int adapter


@cython.final
cdef class Lru:
    cdef vector[int] newer, older
    cdef int size

    cdef void know_adapter(self) noexcept
    cdef bint has(self, int adapter) noexcept
    cdef int oldest(self) noexcept
    cdef void put(self, int adapter) noexcept
    cdef void remove(self, int adapter) noexcept


@cython.final
cdef class Tiers:
    cdef Lru slots, host_cache
    cdef long long max_loras, max_cpu_loras
    cdef object numbers
    cdef dict adapters
    cdef vector[int] applied
    cdef vector[long long] activated
    cdef long long num_activations

    cdef void know_adapter(self, int adapter, object number)
    cdef void take_slot(self, int adapter) noexcept
    cdef list in_slots(self)
    cdef void apply(self, vector[int]& adapters, vector[Event]& events) except *
    cdef void load(self, int adapter, vector[Event]& events) noexcept
    cdef void activate(self, int adapter, vector[Event]& events) noexcept

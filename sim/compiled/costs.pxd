# cython: language_level=3
cimport cython
from libcpp.vector cimport vector

from sim.compiled.state cimport i64

cdef enum:
    NUM_COUNTS = 15
    NUM_SUMS = 7

cdef enum Graph:
    FULL, PIECEWISE, NO_GRAPH

cdef struct Shape:
    # As in sim.costs.StepShape: `counts` in the order of sim.compiled.programs.COUNTS.
    Graph graph
    i64[NUM_COUNTS] counts

cdef struct Cost:
    # As in sim.costs.StepCost.
    i64 schedule_ns, prepare_ns, remap_ns, launch_ns, gpu_fs, update_ns

cdef struct Instruction:
    int op
    i64 operand

cdef struct Product:
    int total, term
    i64 coefficient


@cython.final
cdef class Sums:
    cdef vector[vector[Instruction]] terms
    cdef vector[Product] products
    cdef i64[NUM_SUMS] units

    cdef void evaluate(self, i64* counts, i64* totals) except *


@cython.final
cdef class StepCosts:
    cdef list sums
    cdef i64[NUM_COUNTS] least, most

    cdef Cost cost(self, Shape* shape) except *
    cdef void note(self, Shape* shape) noexcept

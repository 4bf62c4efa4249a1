# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
# distutils: language = c++
"""What a step costs: the sums of `sim.profile.FittedCosts`, and the extremes of what was asked about."""

from libc.math cimport fabs

from dataclasses import fields

from sim.compiled.limits import LeavesCompiledError
from sim.compiled.programs import COUNTS, Op, depth, program
from sim.costs import GRAPHS, StepCost, StepShape
from sim.profile import UNITS_FS

cdef double LARGEST = 2.0**62
"""Sums of half the range of 64 bits, so that products and rounding stay within it."""
cdef enum:
    STACK = 16
    MOST_TERMS = 64
    COUNT = 0
    CONSTANT = 1
    NEGATE = 2
    ADD = 3
    SUBTRACT = 4
    MULTIPLY = 5
    DIVIDE = 6
    GREATER = 7
    EQUAL = 8

if not (
    [op.name for op in Op] == "COUNT CONSTANT NEGATE ADD SUBTRACT MULTIPLY DIVIDE GREATER EQUAL".split()
    and len(COUNTS) == NUM_COUNTS
    and len(UNITS_FS) == NUM_SUMS == len(StepCost._fields)
    and [field.name for field in fields(StepShape)] == ["graph", *COUNTS]
    and GRAPHS == ("full", "piecewise", "none")
):
    raise ImportError("sim.compiled was built for other sources; build it anew: pip install -e .")


cdef i64 divided(i64 value, i64 by):
    """Rounded down, as in Python."""
    cdef i64 quotient = value // by
    return quotient - (value % by != 0 and (value < 0) != (by < 0))


cdef i64 run(Instruction* program, size_t length, i64* counts):
    """Return what the program leaves on the stack. Terms see to it that nothing is divided by 0."""
    cdef i64[STACK] stack
    cdef int top = -1, op
    cdef size_t place
    for place in range(length):
        op = program[place].op
        if op == COUNT:
            top += 1
            stack[top] = counts[program[place].operand]
        elif op == CONSTANT:
            top += 1
            stack[top] = program[place].operand
        elif op == NEGATE:
            stack[top] = -stack[top]
        else:
            top -= 1
            if op == ADD:
                stack[top] += stack[top + 1]
            elif op == SUBTRACT:
                stack[top] -= stack[top + 1]
            elif op == MULTIPLY:
                stack[top] *= stack[top + 1]
            elif op == DIVIDE:
                stack[top] = divided(stack[top], stack[top + 1])
            elif op == GREATER:
                stack[top] = stack[top] > stack[top + 1]
            else:
                stack[top] = stack[top] == stack[top + 1]
    return stack[0]


cdef class Sums:
    """`sim.terms.sums`, given the coefficients of each sum's terms."""

    def __init__(self, coefficients, units):
        names = list(dict.fromkeys(name for terms in coefficients for name, value in terms.items() if value))
        for name in names:
            self.terms.push_back([Instruction(op, operand) for op, operand in program(name)])
            if depth(program(name)) > STACK:
                raise LeavesCompiledError(f"the term {name} is too deep")
        if len(names) > MOST_TERMS:
            raise LeavesCompiledError("a step's cost has too many terms")
        for total, (terms, unit) in enumerate(zip(coefficients, units, strict=True)):
            self.units[total] = unit
            for name, value in terms.items():
                if value:
                    self.products.push_back(Product(total, names.index(name), value))

    cdef void evaluate(self, i64* counts, i64* totals) except *:
        """Write the sums to `totals`. Raises LeavesCompiledError for what takes more than 64 bits."""
        cdef i64[MOST_TERMS] values
        cdef double[NUM_SUMS] rough
        cdef size_t term
        cdef Product product
        cdef int total
        for term in range(self.terms.size()):
            values[term] = run(self.terms[term].data(), self.terms[term].size(), counts)
        for total in range(NUM_SUMS):
            totals[total], rough[total] = 0, 0.0
        for product in self.products:
            totals[product.total] += product.coefficient * values[product.term]
            rough[product.total] += fabs(<double>product.coefficient * <double>values[product.term])
        for total in range(NUM_SUMS):
            if rough[total] > LARGEST:
                raise LeavesCompiledError("a step takes more than an hour")
            if self.units[total] > 1:
                totals[total] = divided(totals[total] + self.units[total] // 2, self.units[total])


cdef class StepCosts:
    """Costs by graph mode; `coefficients` has those of each."""

    def __init__(self, coefficients):
        self.sums = [Sums(coefficients[graph], UNITS_FS) for graph in GRAPHS]
        for place in range(NUM_COUNTS):
            self.least[place], self.most[place] = 2**62, -1

    def step(self, shape):
        """Return what `sim.profile.FittedCosts.step` does for a shape, growth left out."""
        cdef Shape asked
        asked.graph = GRAPHS.index(shape.graph)
        for place, name in enumerate(COUNTS):
            asked.counts[place] = getattr(shape, name)
        cdef Cost cost = self.cost(&asked)
        return StepCost(
            cost.schedule_ns, cost.prepare_ns, cost.remap_ns, cost.launch_ns, cost.gpu_fs, cost.update_ns
        )

    cdef Cost cost(self, Shape* shape) except *:
        """Return what a step of this shape costs, and take note of it."""
        cdef i64[NUM_SUMS] totals
        self.note(shape)
        (<Sums>self.sums[shape.graph]).evaluate(shape.counts, totals)
        return Cost(totals[0], totals[1], totals[2], totals[3], totals[4], totals[5])

    cdef void note(self, Shape* shape) noexcept:
        cdef int place
        for place in range(NUM_COUNTS):
            self.least[place] = min(self.least[place], shape.counts[place])
            self.most[place] = max(self.most[place], shape.counts[place])

    def seen(self):
        """Return the least and the most of each count."""
        return {name: (self.least[place], self.most[place]) for place, name in enumerate(COUNTS)}

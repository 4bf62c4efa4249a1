# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
# distutils: language = c++
"""`sim.adapters.AdapterTiers` with `policies.eviction.Lru` in both tiers; adapters are known by numbers."""

from libcpp.vector cimport vector


cdef class Lru:
    """The adapters of a tier in order of use: a ring in which place 0 is before the oldest."""

    def __cinit__(self):
        self.newer.push_back(0)
        self.older.push_back(0)

    cdef void know_adapter(self) noexcept:
        """There is one more adapter, which is not in the tier."""
        self.newer.push_back(-1)
        self.older.push_back(-1)

    cdef bint has(self, int adapter) noexcept:
        """Whether it is in the tier."""
        return self.newer[adapter + 1] >= 0

    cdef int oldest(self) noexcept:
        """Return the one that was used longest ago."""
        return self.newer[0] - 1

    cdef void put(self, int adapter) noexcept:
        """It comes, or is used."""
        cdef int place = adapter + 1, newest
        if self.has(adapter):
            self.remove(adapter)
        newest = self.older[0]
        self.newer[newest] = self.older[0] = place
        self.older[place], self.newer[place] = newest, 0
        self.size += 1

    cdef void remove(self, int adapter) noexcept:
        """It leaves the tier."""
        cdef int place = adapter + 1
        self.older[self.newer[place]] = self.older[place]
        self.newer[self.older[place]] = self.newer[place]
        self.newer[place] = self.older[place] = -1
        self.size -= 1


cdef class Tiers:
    """Host cache and slots of one engine, empty at first."""

    def __init__(self, long long max_loras, long long max_cpu_loras):
        self.max_loras, self.max_cpu_loras = max_loras, max_cpu_loras
        self.slots, self.host_cache = Lru(), Lru()
        self.numbers, self.adapters = [], {}

    cdef void know_adapter(self, int adapter, object number):
        """There is one more adapter, in no tier. `number` is the integer that its name stands for."""
        self.slots.know_adapter()
        self.host_cache.know_adapter()
        self.activated.push_back(0)
        self.numbers.append(number)
        self.adapters[number] = adapter

    cdef void apply(self, vector[int]& adapters, vector[Event]& events) except *:
        """Bring a step's adapters into slots, in the iteration order of a Python set of their integers."""
        cdef int adapter
        if adapters == self.applied:
            return
        self.applied = adapters
        cdef set in_set = set()
        for adapter in adapters:
            in_set.add((<list>self.numbers)[adapter])
        for number in in_set:
            adapter = self.adapters[number]
            if self.host_cache.has(adapter):
                self.host_cache.put(adapter)
            else:
                self.load(adapter, events)
            if self.slots.has(adapter):
                self.slots.put(adapter)
            else:
                self.activate(adapter, events)

    cdef void load(self, int adapter, vector[Event]& events) noexcept:
        """Bring an adapter from disk to the host cache."""
        cdef int victim
        events.push_back(Event(LOAD, adapter))
        if self.host_cache.size >= self.max_cpu_loras:
            victim = self.host_cache.oldest()
            self.host_cache.remove(victim)
            events.push_back(Event(EVICT_HOST, victim))
            if self.slots.has(victim):
                self.slots.remove(victim)
                events.push_back(Event(EVICT_SLOT, victim))
        self.host_cache.put(adapter)

    cdef void activate(self, int adapter, vector[Event]& events) noexcept:
        """Bring an adapter from the host cache to a slot."""
        cdef int victim
        if self.slots.size >= self.max_loras:
            victim = self.slots.oldest()
            self.slots.remove(victim)
            events.push_back(Event(EVICT_SLOT, victim))
        self.take_slot(adapter)
        events.push_back(Event(ACTIVATE, adapter))

    cdef void take_slot(self, int adapter) noexcept:
        """An adapter comes to a slot that is free."""
        self.slots.put(adapter)
        self.activated[adapter] = self.num_activations
        self.num_activations += 1

    cdef list in_slots(self):
        """Return the adapters in slots, in order of activation."""
        found = [adapter for adapter in range(len(self.numbers)) if self.slots.has(adapter)]
        return sorted(found, key=lambda adapter: self.activated[adapter])

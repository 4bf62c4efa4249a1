"""The engine in compiled code, for runs with vLLM's own policies.

Its modules decide as `sim.scheduler`, `sim.adapters`, `sim.engine` and `sim.recorder` do, step by step, and
are held equal to them by tests; who wants to know what the engine does reads those. `sim.compiled.choice`
says which runs it takes. Where it could not be built, nothing but time is lost.
"""

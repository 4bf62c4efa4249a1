# cython: language_level=3
"""What the compiled modules share: a request's state, and what an empty time or place is."""

ctypedef long long i64

cdef enum:
    # No adapter, no neighbour in a line, a time that has not come.
    NOTHING = -1

cdef enum:
    # As in sim.request.RequestStatus.
    WAITING = 1
    RUNNING = 2
    FINISHED_LENGTH_CAPPED = 5
    FINISHED_ABORTED = 6

cdef struct Request:
    # As in sim.request.Request; `adapter` is the number that its name has in the engine.
    i64 arrival_ns
    i64 scheduled_ns
    i64 first_token_ns
    i64 last_token_ns
    i64 finish_ns
    i64 num_prompt_tokens
    i64 final_num_tokens
    i64 num_tokens
    i64 num_computed_tokens
    i64 num_kv_blocks
    int num_output_placeholders
    int adapter
    int status
    # Neighbours in the line of all that wait, and behind it in the line of its adapter.
    int before
    int behind
    int before_of_adapter
    int behind_of_adapter

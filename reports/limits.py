"""What the simulator does not model: the one list of it."""

NOT_MODELLED = (
    ("Tensor and pipeline parallelism", "a replica is one engine on one GPU"),
    ("Speculative decoding", "one token per request and step"),
    ("Structured output", "no grammar work on the host"),
    ("Mixture-of-experts models", "dense models only"),
    ("Multimodal input", "text only: no encoder"),
    ("Network and API-server front end", "a request is with the engine the moment it is sent"),
    ("Tokenisation and detokenisation", "requests are counted in tokens"),
)
"""Pairs of what is left out and what is assumed in its place."""

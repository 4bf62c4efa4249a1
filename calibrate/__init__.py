"""Real vLLM on a GPU: measure, fit, validate."""

"""Real runs of vLLM 0.8.5 that others measured: profiles from microbenchmarks, predictions of hours."""

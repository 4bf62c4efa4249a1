"""The SimPy simulator of the vLLM engine loop."""

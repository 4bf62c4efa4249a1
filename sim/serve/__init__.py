"""The simulated engine behind HTTP: what a client of ``vllm serve`` sees, without a GPU."""

"""The plan: the cheapest ``vllm serve`` command that meets latency targets, found by simulating."""

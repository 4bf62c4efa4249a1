"""Other people's write-ups of serving adapters: simulations in their form, beside what they reported."""

"""Many runs as one: what a sweep's jobs leave, and which of their settings is better."""

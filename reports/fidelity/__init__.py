"""How near simulations come to the real engine, and policies inside it: ``python -m reports.fidelity``."""

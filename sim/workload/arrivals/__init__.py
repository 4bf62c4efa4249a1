"""Arrival processes of the open loop: one file each."""

"""Backends measured on the machine that runs: checked against the reference in float64, timed, noted."""

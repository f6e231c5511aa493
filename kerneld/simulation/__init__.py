"""Simulation: the daemon's own scheduling under virtual time, and what is measured of it."""

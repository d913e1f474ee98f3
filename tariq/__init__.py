"""Tariq: hybrid port knocking for fleets."""

__version__ = "0.1.0"

"""Keeps a run from handing back a network that is worse than what it had before a stage."""

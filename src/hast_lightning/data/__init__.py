"""Evaluation data, and the ticker that drives training without data."""

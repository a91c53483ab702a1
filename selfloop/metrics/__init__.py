"""Metrics: how far a model's law, or the points it draws, lies from another."""

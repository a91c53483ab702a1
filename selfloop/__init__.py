"""Simulation and theory of self-consuming generative loops: models trained on their own samples."""

__version__ = "0.1.0"

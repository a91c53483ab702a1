"""Generative algorithms: recipes from data to model, and wrappers that make one algorithm of another."""

"""Curators: maps from data to data, as the rows that stay and their weights."""

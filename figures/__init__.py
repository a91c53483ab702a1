"""Figures, drawn from saved results alone: `python -m figures` draws all, `python -m figures NAME --results DIR` one."""

"""The scheduler: a pure core (``decide``) and one async shell; it assigns jobs to workers and ends them.

Imports ``shared`` only. Safety never depends on there being only one.
"""

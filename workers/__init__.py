"""The workers: per device pool an agent (owns the bus, no torch) and its torchrun group (owns devices, no bus).

``agent`` and ``engine`` are two wings that never import each other; ``link`` is the one thing between them, ``pool``
the file that describes a pool to both. ``training`` makes the demo model and is imported by nothing.
"""

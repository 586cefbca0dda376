"""The engine wing: everything that touches a device. A group of ranks loads one model and does one job at a time for
the agent at the other end of the link (``rank.py``), or in one process without either (``direct.py``). It knows no bus.
"""

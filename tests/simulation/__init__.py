"""The real services on a bus in memory and on time that is made up, under faults that a seed draws.

Everything of a run happens on one event loop in one order, which the seed decides: a failing seed fails again.
"""

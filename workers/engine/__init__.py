"""The engine: what a rank of a torchrun group runs; owns the device, knows nothing of the bus.

Speaks frames of ``workers.link`` with the agent (rank 0) and lockstep commands among ranks.
"""

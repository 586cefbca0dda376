"""The agent: one process per device pool that owns the bus, the lease, inputs and outputs, and the group's life.

Never imports torch or the engine: it must outlive whatever happens on the devices.
"""

"""The composition root: the ``genfleet`` command, the one-machine supervisor and the files that deploy the services.

May import every service; no service imports it.
"""

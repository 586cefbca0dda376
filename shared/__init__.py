"""What all services share: message types, the record's lifecycle, the bus and artifact ports, settings, telemetry.

Imports no service and never torch. Everyone may import it.
"""

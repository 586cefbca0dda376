"""Intake: the process in which untrusted pictures and clips are decoded, each in a child of its own with limits, no
network and no credentials. It knows neither torch nor the bus, and nobody imports it: it is started as a program
(``shared.intake``)."""

"""Where the demo model comes from: procedural clips, an analytic VAE, a small text encoder and a small Wan transformer.

Nothing here is imported by a service. `python -m workers.training` is the door.
"""

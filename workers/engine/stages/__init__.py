"""The stages that a job passes, in this order: encode text, encode image, denoise, decode, mux. Each is one file and
knows nothing of the others; a family composes them.
"""

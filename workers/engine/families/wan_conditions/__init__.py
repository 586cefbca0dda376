"""What Wan's denoisers are conditioned with beside text: one module per kind of checkpoint. ``base`` has the port,
``kinds`` chooses."""

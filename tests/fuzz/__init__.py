"""Generated input, bounded and the same at every run; ``make fuzz`` goes on for longer, with other input each time."""

"""What makes a job faster or smaller, at a stated cost to its result: two caches between steps, the attention kernel,
compiled blocks, fused projections, weights in 8 bits, parts that take turns on the device; and what a forward costs.
"""

"""What makes a job cheaper at a stated cost to its result: reuse of attention outputs between steps."""

"""Webhooks: a job's end, told to the address that its client named (Standard Webhooks 1.0), at least once and by any
replica; what is owed lies in the bucket ``deliveries`` until it is told."""

"""The gateway: HTTP in, one durable write out; follows the buckets and fans changes out to REST and SSE.

Any replica answers for any job. Imports ``shared`` only; neither torch, the scheduler nor the workers.
"""

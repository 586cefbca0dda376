"""How ranks share one job: which layouts there are (``layouts``), their process groups (``mesh``), sequence
parallelism (``ulysses``), the exact width split of the VAE (``vae``) and sharded weights (``fsdp``).
"""

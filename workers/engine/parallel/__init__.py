"""How ranks share one job: which layouts there are (``layouts``), their process groups (``mesh``), sequence
parallelism (``ulysses``, ``ring``), the exact width split of the VAE (``vae``), sharded weights (``fsdp``), and what
keeps ranks from waiting for one that has failed (``collective``, ``fence``, ``guard``).
"""

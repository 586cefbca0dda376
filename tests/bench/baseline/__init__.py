"""What most people would build instead: FastAPI, Celery and Redis, in a virtual environment of its own. The benchmarks
run it beside genfleet on the same machine in the same minutes."""

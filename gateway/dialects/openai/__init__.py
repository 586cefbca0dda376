"""The part of OpenAI's API that makes videos and pictures, as the unmodified ``openai`` package speaks it: ``videos``
and ``images``, with the error shape of ``errors``."""

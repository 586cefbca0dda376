"""The history checker: which promise of the design is broken, if any, judged from what is left behind.

``check`` is pure and says what is wrong with a ``Snapshot``; ``reading`` takes one through the ports.
``python -m deploy.history`` is both for people.
"""

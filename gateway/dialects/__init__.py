"""The APIs that clients of other services already speak. Each is one module: its words into ours, ours into its words
(pure), and its routes. A job made in one can be read in every other; none is known outside this package.

Sources: the services' own documents; ``openai`` 3.52.0's types for the last.
"""

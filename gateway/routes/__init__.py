"""The native API's routes, one file per subject. Each handler parses, asks one of the gateway's parts, and answers."""

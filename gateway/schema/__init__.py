"""The bodies of the native API, in and out, as structs: they decode, encode and document it."""

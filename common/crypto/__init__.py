"""Primitives with domain-separating labels, identities, certificates, and the one source of secret randomness."""

"""Kinds of sources: each yields records of the schema and the bytes of their files. `finding.py` tells them apart."""

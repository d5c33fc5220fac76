"""Bytes: one file out of a request and into another, never held."""

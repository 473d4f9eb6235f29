"""Traces of requests: what is kept of them when they are over, and how it reaches a collector."""

"""PURE: The values that every part of the worker knows."""

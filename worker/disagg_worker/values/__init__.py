"""PURE: The values that all parts of the worker share."""

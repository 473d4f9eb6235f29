"""The words that the operator, the router and the worker share.

The package imports nothing but the standard library.
"""

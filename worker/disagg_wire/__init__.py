"""The words that the operator, the router and the worker share.

Imports nothing but the standard library.
"""

"""PURE: what a deployment needs before it exists: hardware, arithmetic, capacity, and the
trace-driven simulator.
"""

"""Doors to what the pools report: `direct` asks the pods, `prometheus` asks a Prometheus.

`reading` is PURE.
"""

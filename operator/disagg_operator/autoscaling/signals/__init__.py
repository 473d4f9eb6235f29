"""The signals: clients that read what the pods report, and PURE modules that evaluate it.

`direct` asks the pods themselves; the modules `prometheus_*` ask a Prometheus server.
"""

"""Request-level simulation of prefill and decode pools under an autoscaling policy.

It needs the `simulate` extra.
"""

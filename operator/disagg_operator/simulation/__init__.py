"""Request-level simulation of prefill and decode pools under an autoscaling policy. Needs the `simulate` extra."""

"""Assessment of what runs today: its workload, whether prefill disturbs decode, a plan for it."""

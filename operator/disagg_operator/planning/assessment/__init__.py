"""Assessment of what runs today: its workload, whether prefill disturbs decode, and a plan."""

"""What runs today: its workload, whether prefill disturbs decode in it, and a plan beside it."""

"""The planner's speeds and verdicts beside those of NVIDIA's AISimulate."""

"""PURE: The planner, which finds the cheapest deployment for a model, its traffic and hardware."""

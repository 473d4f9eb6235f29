"""The planner beside published measurements of one pool."""

"""PURE: Rollouts of both pools together: what is seen, what may be held, and what is done next."""

"""PURE: The metrics of engines of other projects: each engine's names stand in its module here."""

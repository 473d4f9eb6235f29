"""The records: saved policy states, and the log of decisions."""

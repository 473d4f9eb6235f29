"""The workers as the router sees them: what they report, how loaded they are, and the choice of a
pair.
"""

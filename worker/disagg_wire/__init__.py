"""The words that operator, router and worker share. Imports nothing but the standard library."""

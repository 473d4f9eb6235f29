"""A Kubernetes cluster for tests.

It is the user's own, or one of kind if a Docker engine answers, or one built from Go modules.
"""

"""Admission of requests: the queue in front of full pools, and the order of the requests in it."""

"""The sources of the list of workers: EndpointSlices of the cluster, or a file."""

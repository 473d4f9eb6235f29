"""Where the list of workers comes from: EndpointSlices of the cluster, or a file."""

"""The controller: it watches the cluster and brings each DisaggDeployment to its desired state."""

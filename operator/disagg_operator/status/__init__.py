"""The status of a DisaggDeployment: observed workloads, conditions, and Events about changes."""

"""The alerts and recording rules for Prometheus, which the chart and a plain file carry."""

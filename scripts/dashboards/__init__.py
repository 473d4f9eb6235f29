"""The dashboards, written once for Grafana and for Perses."""

"""Prometheus figures of a run and the endpoint that serves them; the only part that knows the client."""

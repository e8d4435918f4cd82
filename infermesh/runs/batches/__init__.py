"""Rows whose requests go through a batch API: written down, submitted, fetched, and given back to the runner."""

"""One run over several processes: a hub, which keeps the store and the quotas, and workers, which send the requests."""

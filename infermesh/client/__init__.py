"""LMClient: an async core on one background loop, with thin synchronous and asynchronous methods over it."""

"""``infermesh doctor``: what stands between a user and a run, each thing with what to do about it."""

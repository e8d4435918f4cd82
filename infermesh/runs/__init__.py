"""Running an experiment: sessions, the runner, sinks, progress, and the Python interface to runs."""

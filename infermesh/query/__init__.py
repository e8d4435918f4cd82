"""Reads of runs, live and finished: SQL, diff, export, figures, and the socket of a live run."""

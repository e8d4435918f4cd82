"""Sweeps over a setting, such as concurrency: measure, plot, recommend."""

"""Concurrency sweeps: measuring, plotting and recommending a setting."""

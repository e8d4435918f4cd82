"""Pages over runs and sweeps: self-contained HTML with charts, for a file that is mailed or kept."""

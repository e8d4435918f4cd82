"""What rows are made from: sources, prompt templates, audio and images."""

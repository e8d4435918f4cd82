"""What requests are made from: sources of rows, templates, audio and images."""

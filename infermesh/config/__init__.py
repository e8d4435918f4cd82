"""What a declaration says: its schema, how it is composed and validated."""

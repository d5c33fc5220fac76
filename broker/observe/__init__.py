"""What is seen of a request: one record, and its readers."""

"""What outlives a request: the database, and what is forgotten after a while."""

"""The audit: who did what, in rows that are added and never changed, each one vouching for the one before."""

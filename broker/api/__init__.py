"""HTTP in, HTTP out: one file for each thing that a caller comes for."""

"""``make bench``: the broker beside nginx and the two programs that one writes first, in one run."""

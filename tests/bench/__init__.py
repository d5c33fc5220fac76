"""``make bench``: the broker beside nginx and what one writes first, in one run."""

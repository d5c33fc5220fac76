"""Looking at sensitive files while they pass: what a scanner is, and the one that there is."""

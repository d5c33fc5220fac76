"""``make soak``: uploads of every sort for minutes, faults at Coze all the while, an account at the end."""

"""A small Coze for the demo and the tests. It imports nothing else of the broker.

What the documents leave open is chosen here and written down where it is decided:
statuses and sentences in `refusals`, signing rules in `assertions`, file types in `file_types`.
"""

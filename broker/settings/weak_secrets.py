"""What is no secret: too short, too even, or a word that stood in an example."""

from __future__ import annotations

import re

MIN_SECRET_LENGTH = 32
MIN_DISTINCT_CHARACTERS = 6
"""Of 32 random digits, the poorest that people take, one in ten million has fewer."""
MIN_UNGUESSED_LENGTH = 16
_EXAMPLE_WORDS = re.compile(
    "abcdefghijklmnopqrstuvwxyz|0123456789|1234567890|qwertyuiop|asdfghjkl|zxcvbnm"
    "|change|secret|password|passwd|example|sample|default|pepper|placeholder|replace|random|string|please"
    "|production|development|insert|generate|broker|hybrid|upload|coze|super|token|value|your|with|this|that"
    "|here|test|demo|admin|root|some|long|must|least|chars|characters|dont|never|not|key|use|me|my|is|in"
)


def weakness(secret: str) -> str | None:
    """What is wrong with ``secret``, as the rest of a sentence that begins with its name; or None."""
    if len(secret) < MIN_SECRET_LENGTH:
        return f"is shorter than {MIN_SECRET_LENGTH} characters."
    if len(set(secret)) < MIN_DISTINCT_CHARACTERS:
        return f"has fewer than {MIN_DISTINCT_CHARACTERS} different characters."
    if _period(secret) < MIN_SECRET_LENGTH:
        return f"says the same again and again; {MIN_SECRET_LENGTH} characters must come before it repeats."
    if _unguessed_length(secret) < MIN_UNGUESSED_LENGTH:
        return "is a text from an example. Use a random one: openssl rand -hex 32."
    return None


def _period(text: str) -> int:
    """After how many characters the text begins anew; its own length when it never does in the first half."""
    return next((size for size in range(1, len(text) // 2 + 1) if text.startswith(text[size:])), len(text))


def _unguessed_length(text: str) -> int:
    """How many letters and digits there are besides the words that examples are made of."""
    letters = re.sub("[^a-z0-9]", "", text.lower())
    return len(_EXAMPLE_WORDS.sub("", letters)) if _EXAMPLE_WORDS.search(letters) else len(text)

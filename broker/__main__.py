"""``python -m broker``, and the command ``broker``: what ends it before it has begun."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C ended."""


def main() -> None:
    """Run the command. Loading it takes half a second, in which Ctrl-C ends it without a trace."""
    may_be_interrupted = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if may_be_interrupted:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from broker.cli import main as run  # noqa: PLC0415 - Ctrl-C is heard by then

    if may_be_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()

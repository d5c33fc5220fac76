"""`python -m broker.sandbox`: a sandbox Coze alone."""

import argparse
from pathlib import Path

from broker.sandbox import serve


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m broker.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=serve.DEFAULT_PORT, help="0 takes a free one")
    parser.add_argument("--config", type=Path, help="JSON file with apps and tokens instead of fresh ones")
    parser.add_argument("--credentials-dir", type=Path, help="where the fresh private keys are written")
    parser.add_argument("--json", action="store_true", help="print one line of JSON when it listens")
    options = parser.parse_args(arguments)
    try:
        serve.run(
            options.host,
            options.port,
            config_file=options.config,
            credentials_dir=options.credentials_dir,
            as_json=options.json,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""Exit 0 where an address answers with 200, else 1: slim images have no curl."""

import sys
import urllib.error
import urllib.request


def main() -> int:
    """Ask the address given as the only argument."""
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=8) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

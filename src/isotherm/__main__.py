"""``python -m isotherm`` is the ``isotherm`` command."""

import sys

from isotherm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

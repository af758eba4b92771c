"""``python -m isotherm`` is the ``isotherm`` command."""

from isotherm.cli.main import main

if __name__ == "__main__":
    main()

"""``python -m hast_lightning``."""

from hast_lightning.cli.start import main

if __name__ == "__main__":
    main()

"""``python -m dlmrl_kit`` does what ``dlmrl`` does."""

from dlmrl_kit.cli import main

if __name__ == "__main__":
    main()

"""``python -m worldsim``."""

from worldsim.cli import main

if __name__ == "__main__":
    main()

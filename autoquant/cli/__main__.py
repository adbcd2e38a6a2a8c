"""`python -m autoquant.cli`, for launchers that start modules."""

from autoquant.cli import main

if __name__ == "__main__":
    main()

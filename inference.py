"""Entry point of the container: `python inference.py --help` tells the rest."""

from petclick.cli import main
from petclick.program import run

if __name__ == "__main__":
    run(main)

"""`python -m bench.checkout DIRECTORY MODULE ARGUMENTS…` runs a module of another checkout, in its own environment."""

import os
import sys


def main() -> None:
    directory, *command = sys.argv[1:]
    python = os.path.join(directory, ".venv", "bin", "python")
    os.chdir(directory)
    os.execv(python, [python, "-m", *command])


if __name__ == "__main__":
    main()

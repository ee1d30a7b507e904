"""python -m riddle: see riddle.app.cli."""

import sys

from riddle.app.cli import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file's name need not be text that the terminal can show
    sys.exit(main())

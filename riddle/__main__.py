"""python -m riddle: see riddle.app.cli."""

import sys

from riddle.app.cli import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that the terminal cannot show
    sys.exit(main())

"""Start the Magic Canvas web app: `python app.py`; `python app.py --help` lists the options."""

import sys

from canvas.errors import CanvasError
from canvas.server.launch import main

if __name__ == "__main__":
    try:
        main()
    except CanvasError as error:
        sys.exit(str(error))

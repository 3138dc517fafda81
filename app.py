"""Start the Magic Canvas web app: `python app.py`; `python app.py --help` lists the options."""

import sys

from canvas.engine import configure_process
from canvas.errors import CanvasError
from canvas.server.launch import main

if __name__ == "__main__":
    configure_process()
    try:
        main()
    except CanvasError as error:
        sys.exit(error.full_text)

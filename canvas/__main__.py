"""The command line: `python -m canvas`."""

from canvas.cli.main import main

if __name__ == "__main__":
    main()

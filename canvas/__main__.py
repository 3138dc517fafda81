"""`python -m canvas …` starts the command line."""

from canvas.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m oneadam.cli` is the command `oneadam`."""

from oneadam.cli import main

main()

"""The command `oneadam`, which needs the extra `cli`."""

import sys
from importlib.util import find_spec

__all__ = ["main"]

_NEEDED = {
    "typer": "typer",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}


def main() -> None:
    """Run the command, or say what has to be installed first."""
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        sys.exit(
            f"oneadam: the command needs {', '.join(missing)}, which the extra 'cli' brings: "
            "python -m pip install 'oneadam[cli]'"
        )
    from oneadam.cli.app import app

    app()

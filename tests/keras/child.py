"""A process that answers questions: `python child.py module`, then one question in each line.

A question is `[name, arguments]` in JSON, of a function in that module that has a public name.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
import warnings


def main(module: str) -> None:
    # As in pyproject.toml.
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword")
    asked = vars(importlib.import_module(module))
    print(json.dumps([True, module]), flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = [True, asked[name](*arguments)]
        except Exception:
            answer = [False, traceback.format_exc()]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

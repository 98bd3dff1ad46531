"""Generates `order_service_client/client.py`, the synchronous client, from the asynchronous one.

python generate_client.py order_service_client/async_client.py order_service_client/client.py
"""

import re
import sys
from pathlib import Path

SUBSTITUTIONS = {
    r"\A.*": '# Generated from async_client.py by make client-types.\n"""The synchronous client."""',
    "AsyncClient": "Client",
    "AsyncGenerator, Awaitable, Callable": "Callable, Generator",
    r"AsyncGenerator\[(.+), None\]": r"Generator[\1, None, None]",
    r"Awaitable\[(\w+)\]": r"\1",
    "import json\n": "import json\nimport time\n",
    "import anyio\n": "",
    "anyio.sleep": "time.sleep",
    "(async|await) ": "",
    "__a(enter|exit)__": r"__\1__",
    r"\ba(close|read|iter_bytes)\b": r"\1",
}


def generate(module: str) -> str:
    for pattern, replacement in SUBSTITUTIONS.items():
        module = re.sub(pattern, replacement, module)
    return module


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(generate(source.read_text()))

"""Print a command of the README, so that CI runs exactly what a reader copies.

    python3 .ci/readme_commands.py README.md main

A command is the ```bash block that directly follows the comment `<!-- command: NAME -->`.
"""

import re
import sys
from pathlib import Path

COMMAND = re.compile(r"^<!-- command: (?P<name>\S+) -->[ \t]*\n(?:[ \t]*\n)?```bash[ \t]*\n(?P<text>.*?)^```[ \t]*$", re.M | re.S)


def command(markdown: str, name: str) -> str:
    """The text of the one block called `name`; exits with a message unless there is exactly one and it is not empty."""
    found = [match["text"].strip() for match in COMMAND.finditer(markdown) if match["name"] == name]
    if len(found) != 1 or not found[0]:
        sys.exit(f"{len(found)} commands follow <!-- command: {name} -->: there must be one ```bash block, not empty.")
    return found[0]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: readme_commands.py README.md NAME")
    print(command(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]))

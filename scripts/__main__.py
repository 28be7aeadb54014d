"""The console command `zhizhi`: `zhizhi build-index …` is `python scripts/build_index.py …`."""

import ast
import importlib
import sys
from pathlib import Path

import zhizhi._quiet  # first: Ctrl-C during the imports below

from gpt_core.common.terminal import escape_unencodable


def commands() -> dict[str, str]:
    """Each command's name, and the first line of its script's docstring."""
    scripts = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {
        script.stem.replace("_", "-"): (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or "").split(
            "\n"
        )[0]
        for script in scripts
    }


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1].replace("_", "-") if len(sys.argv) > 1 else ""
    if name not in (known := commands()):
        escape_unencodable()
        asked = name in ("--help", "-h")
        width = max(map(len, known))
        lines = ["usage: zhizhi COMMAND …", "", *(f"  {n:{width}}  {text}" for n, text in known.items()), ""]
        lines.append("zhizhi COMMAND --help lists a command's arguments.")
        if name and not asked:
            lines.insert(0, f"zhizhi: there is no command {name!r}; expected one of those below.")
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    sys.argv = [f"zhizhi {sys.argv[1]}", *sys.argv[2:]]
    importlib.import_module(f"zhizhi.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()

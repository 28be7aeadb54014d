"""The console command `zhizhi`: `zhizhi build-index …` is `python scripts/build_index.py …`."""

import importlib
import sys
from pathlib import Path

import zhizhi._quiet  # Ctrl-C before a door is open


def main() -> None:
    """Run the door that the first argument names."""
    doors = sorted(p.stem for p in Path(__file__).parent.glob("[!_]*.py"))
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else ""
    if name not in doors:
        wanted = name not in ("", "__help", "_h")
        print("usage: zhizhi DOOR …\ndoors: " + " ".join(d.replace("_", "-") for d in doors), file=sys.stderr)
        sys.exit(2 if wanted or not name else 0)
    sys.argv = [f"zhizhi {sys.argv[1]}", *sys.argv[2:]]
    importlib.import_module(f"zhizhi.{name}").main()


if __name__ == "__main__":
    main()

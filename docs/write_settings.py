"""Write the table of settings into docs/configuration.md; run it after a change of service/settings.py."""

from __future__ import annotations

import re
from pathlib import Path

from service.settings import settings_table

PAGE = Path(__file__).parent / "configuration.md"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = re.compile(r"^\| variable \| flag \|.*?(?=\n\n)", re.MULTILINE | re.DOTALL)
    written, count = table.subn(lambda _: settings_table(), text)
    if count != 1:
        raise SystemExit(f"{PAGE.name} has {count} tables of settings, expected one")
    PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()

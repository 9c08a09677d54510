"""Write docs/settings.md: every setting that --set takes, as its field declares it.

python docs/settings_page.py            writes it
python docs/settings_page.py --check    exits with 1 where it is not what the fields say
"""

from __future__ import annotations

import sys
from pathlib import Path

from autoft.cli.show_settings import by_group
from autoft.settings import Field, default_of

PAGE = Path(__file__).parent / "settings.md"
HEAD = """# Settings

Made by `python docs/settings_page.py` (`make readme`) from trainer/recipe.py and trainer/job.py: do not edit. `--set
KEY=VALUE` of `autoft plan`, `run` and `estimate` takes each; `autoft plan --help-settings` lists them. They are the
lines of plan.toml too. Type the name that another trainer has for one, and the error gives ours.
"""
COLUMNS = "| Setting | What it is | Values | Default | Changes | Called elsewhere |\n|---|---|---|---|---|---|\n"


def page() -> str:
    """The whole text of the page."""
    sections = [f"## {group}\n\n{COLUMNS}{''.join(map(row, fields))}" for group, fields in by_group().items()]
    return "\n".join([HEAD, *sections])


def row(field: Field) -> str:
    setting = field.setting
    about = setting.help[0].upper() + setting.help[1:] + "."
    cells = (
        f"`{field.name}`",
        f"{about} {setting.more}".strip(),
        field.kind,
        f"`{default_of(field.default)}`",
        ", ".join(setting.changes),
        ", ".join(f"`{name}`" for name in setting.elsewhere.split()),
    )
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    new = page()
    if "--check" in sys.argv and PAGE.read_text(encoding="utf-8") != new:
        sys.exit("docs/settings.md is not what the fields say: make readme")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

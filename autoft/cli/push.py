"""`autoft push`: upload a run, or an export, to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from autoft import render
from autoft.cli import options
from autoft.units import KIB, size

if TYPE_CHECKING:
    from autoft.trainer.publish.contents import Publication


@options.command(
    "Upload the adapter or model in DIR to the Hugging Face hub, with a model card.\n\n"
    "DIR is a folder written by `autoft run`, `autoft merge` or `autoft export`. Paths of this machine, rows of "
    "your data, logs and checkpoints stay here. --dry-run shows what would be uploaded, without the network.",
    examples=(
        "autoft push my-adapter me/my-adapter --dry-run",
        "autoft push my-adapter me/my-adapter --private",
        "autoft push my-model me/my-model --json",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--with-examples", is_flag=True, help="Upload files that show held-out rows too.")
@click.option("--dry-run", is_flag=True, help="Show files and card, upload nothing.")
def command(folder: Path, repository: str, private: bool, with_examples: bool, dry_run: bool, as_json: bool) -> None:
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.publish.contents import publication_of
    from autoft.trainer.publish.upload import check_repository, token, upload

    check_repository(repository)
    user_token = "" if dry_run else token()
    publication = publication_of(folder, repository.partition("/")[2], examples=with_examples)
    notes = render.console(stderr=True)
    if publication.with_examples:
        note = f"Note: {' and '.join(publication.with_examples)} show held-out rows of your data"
        notes.print(note if with_examples else f"{note} and stay here; --with-examples uploads them", markup=False)
    if not as_json:
        _show(publication, render.console() if dry_run else notes, with_card=dry_run)
    url = None if dry_run else upload(publication, repository, private=private, user_token=user_token)
    if as_json:
        options.print_json(
            {
                "repository": repository,
                "private": private,
                "files": publication.sizes,
                "left_out": list(publication.left_out),
                "card": publication.card,
                "url": url,
            }
        )
    elif url is not None:
        click.echo(f"Uploaded: {url}")


def _show(publication: Publication, console: Console, *, with_card: bool) -> None:
    sizes = publication.sizes
    for name, num_bytes in sizes.items():
        console.print(f"{_exact(num_bytes):>9}  {name}", markup=False, soft_wrap=True)
    console.print(f"{_exact(sum(sizes.values())):>9}  in all")
    if publication.left_out:
        console.print(f"Stays here: {', '.join(publication.left_out)}", markup=False, soft_wrap=True)
    if with_card:
        console.print(Text("README.md", style="bold"))
        console.print(publication.card, markup=False, soft_wrap=True)


def _exact(num_bytes: int) -> str:
    return size(num_bytes) if num_bytes >= KIB else f"{num_bytes} B"

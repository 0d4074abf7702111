"""Pages of the documentation that are made of the code while it is built: the wire contract and the commands' help."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

from proto_reference import markdown

from mpcompress_client.cli import cli


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages; mkdocs calls it."""
    for path, content in (("reference/proto.md", markdown()), ("reference/commands.md", commands())):
        files.append(File.generated(config, path, content=content))
    return files


def commands() -> str:
    """`--help` of every command, with its examples, as it would be in 100 columns."""
    return "\n".join(
        [
            "# Every command's options\n",
            "What `mpcompress COMMAND --help` says. Files, JSON and exit codes: [the command line](../cli.md).\n",
            *_helps(),
        ]
    )


def _helps() -> Iterator[str]:
    root = click.Context(cli, info_name="mpcompress", terminal_width=100, max_content_width=100)
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        if command is None:
            continue
        context = click.Context(command, info_name=name, parent=root, terminal_width=100, max_content_width=100)
        yield f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"

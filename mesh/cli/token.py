"""`mesh token`: signs a user in for development."""

from __future__ import annotations

import re
from datetime import timedelta

import click

from mesh.cli.output import print_json
from mesh.cli.place import json_option, paths

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SPAN = re.compile(r"(-?\d+(?:\.\d+)?)([smhd])")


class Span(click.ParamType[timedelta]):
    """A time span: 90s, 15m, 1h, 7d."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Reads it."""
        if isinstance(value, timedelta):
            return value
        match = _SPAN.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no time span: write 90s, 15m, 1h or 7d", param, ctx)
        return timedelta(**{_UNITS[match[2]]: float(match[1])})


@click.command("token")
@click.option("--user", required=True, help="Whom the token is for.")
@click.option(
    "--scope", "scopes", multiple=True, help="What it allows. Repeatable; `mesh routes` shows which there are."
)
@click.option("--ttl", type=Span(), default="1h", show_default=True, help="How long it is valid: 90s, 15m, 1h, 7d.")
@json_option
def command(user: str, scopes: tuple[str, ...], ttl: timedelta, as_json: bool) -> None:
    """Print a signed development token.

    Send it as `Authorization: Bearer TOKEN`. Only this mesh takes it: the key is in its state.
    """
    from mesh.identity import tokens

    folder = paths().identity
    try:
        token = tokens.mint(folder, user, scopes, ttl)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        seconds = int(ttl.total_seconds())
        print_json({"token": token, "user": user, "scopes": list(dict.fromkeys(scopes)), "expiresInSeconds": seconds})
    else:
        click.echo(token)

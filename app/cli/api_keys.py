"""`flask api-keys` and `flask token`."""

from datetime import UTC, datetime, timedelta

import click
import jwt
from flask import current_app
from flask.cli import AppGroup, with_appcontext

from app.cli.common import Age, errors_in_one_line, migrated_database
from app.db.types import rfc3339
from app.models.order_item import ID_MAX
from app.models.principal import CHANNELS_MAX, KEY_NAME_MAX, PERSONAL_DATA_SCOPES, SCOPES, ApiKey
from app.services.api_key_service import create_api_key, key_id, list_api_keys, revoke_api_key

api_keys = AppGroup("api-keys", help="Create, list and revoke the API keys of services.")

scope_option = click.option(
    "--scope",
    "scopes",
    type=click.Choice(list(SCOPES)),
    multiple=True,
    required=True,
    help="Scope of the credentials; repeatable.",
)


def _short_name(_: click.Context, option: click.Parameter, value: str) -> str:
    limit = KEY_NAME_MAX if option.name == "name" else ID_MAX
    if not 1 <= len(value) <= limit or not value.isprintable():
        raise click.BadParameter(f"must have 1 to {limit} printable characters.")
    return value


def _channel_names(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> set[str]:
    if len(channels := {_short_name(context, option, value) for value in values}) > CHANNELS_MAX:
        raise click.BadParameter(f"a key is bound to at most {CHANNELS_MAX} channels.")
    return channels


@api_keys.command("create")
@click.option(
    "--name",
    required=True,
    callback=_short_name,
    help="Name of the service; keys with the same name are one principal.",
)
@scope_option
@click.option(
    "--channel",
    "channels",
    multiple=True,
    callback=_channel_names,
    help="Bind the key to a channel: it has access to its orders only. Repeatable; all orders by default.",
)
@click.option("--expires-in", type=Age(), help="Lifetime: 90d, 12h. Unlimited by default.")
def create(name: str, scopes: tuple[str, ...], channels: set[str], expires_in: timedelta | None) -> None:
    """Create a key and print it once, on the last line. Send it as `Authorization: Bearer KEY`."""
    if channels and (useless := [scope for scope in PERSONAL_DATA_SCOPES if scope in scopes]):
        raise click.BadParameter(
            f"a customer's personal data is in orders of all channels. Create another key, without channels, for "
            f"{' and '.join(useless)}.",
            param_hint="--channel",
        )
    with migrated_database():
        key = create_api_key(name, scopes=list(set(scopes)), expires_in=expires_in, channels=channels)
        try:
            click.echo("Keep this key: it is stored as a hash, and cannot be shown again.", err=True)
            click.echo(key)
        except OSError:  # a full disk or a closed pipe: nobody has received the key
            revoke_api_key(key_id(key))
            raise


@api_keys.command("list")
def list_keys() -> None:
    """List all keys without their secrets."""
    with migrated_database():
        for key in list_api_keys():
            used = f"last used {rfc3339(key.last_used_at)}" if key.last_used_at else "never used"
            channels = f"  channels {', '.join(key.channels)}" if key.channels is not None else ""
            click.echo(f"{key.id}  {key.name}  {' '.join(key.scopes)}{channels}  {_state(key)}  {used}")


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {rfc3339(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if key.expires_at > datetime.now(UTC) else 'expired'} {rfc3339(key.expires_at)}"


@api_keys.command("revoke")
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revoke the key with this id. It takes effect within a second."""
    with migrated_database():
        if not revoke_api_key(key_id):
            raise click.ClickException(f"No valid key has the id {key_id}. `flask api-keys list` lists all keys.")
        click.echo(f"{key_id} is revoked.")


@click.command()
@click.option("--customer", required=True, callback=_short_name, help="Customer id, the `sub` of the token.")
@scope_option
@click.option("--expires-in", type=Age(), default="15m", show_default=True, help="Lifetime.")
@with_appcontext
def token(customer: str, scopes: tuple[str, ...], expires_in: timedelta) -> None:
    """Sign a customer's token with a key of your own, for development.

    \b
    openssl genpkey -algorithm ed25519 -out key.pem
    export JWT_SIGNING_KEY="$(cat key.pem)" JWT_PUBLIC_KEY="$(openssl pkey -in key.pem -pubout)"
    export JWT_ISSUER=development JWT_AUDIENCE=orders
    """
    config = current_app.config
    if missing := [name for name in ("JWT_SIGNING_KEY", "JWT_ISSUER", "JWT_AUDIENCE") if not config[name]]:
        raise click.ClickException(
            f"{' and '.join(missing)} must be set, here and for the service. `flask token --help` shows how."
        )
    now = datetime.now(UTC)
    claims = {
        "sub": customer,
        "scope": " ".join(scopes),
        "iss": config["JWT_ISSUER"],
        "aud": config["JWT_AUDIENCE"],
        "iat": now,
        "exp": now + expires_in,
    }
    for algorithm in ("EdDSA", "ES256", "RS256"):
        try:
            signed = jwt.encode(claims, config["JWT_SIGNING_KEY"], algorithm=algorithm)
        except (jwt.PyJWTError, TypeError, ValueError, AttributeError):
            continue  # the key is for another algorithm
        with errors_in_one_line():
            click.echo(signed)
        return
    raise click.ClickException("JWT_SIGNING_KEY must be a private key in PEM: RSA, P-256 or Ed25519.")

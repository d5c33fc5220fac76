"""Keys with rights and several secrets, tokens that are revoked, names that may be claimed more than once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Give each key's one secret a row of its own; the rest is new."""
    op.create_table(
        "api_key_secrets",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False, index=True),
        sa.Column("hint", sa.String(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.execute(
        "INSERT INTO api_key_secrets (hash, key_id, hint, created_at, expires_at) "
        "SELECT hash, id, hint, created_at, 0 FROM api_keys"
    )
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("owner", sa.String(200), nullable=False, server_default=""))
        keys.add_column(sa.Column("rights", sa.JSON, nullable=False, server_default="{}"))
        keys.add_column(sa.Column("updated_at", sa.BigInteger, nullable=False, server_default="0"))
        keys.add_column(sa.Column("last_used_at", sa.BigInteger, nullable=True))
        keys.drop_column("hash")
        keys.drop_column("hint")
    op.execute("UPDATE api_keys SET updated_at = created_at")
    op.create_table(
        "revocations",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("revoked_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    )
    op.add_column("claims", sa.Column("used", sa.Integer, nullable=False, server_default="1"))
    op.add_column("claims", sa.Column("holder", sa.String(200), nullable=True))


def downgrade() -> None:
    """Keep the newest secret of each key; one that has none left gets a hash that nothing has."""
    op.drop_column("claims", "holder")
    op.drop_column("claims", "used")
    op.drop_table("revocations")
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("hash", sa.String(64), nullable=False, server_default=""))
        keys.add_column(sa.Column("hint", sa.String(32), nullable=False, server_default=""))
        for name in ("owner", "rights", "updated_at", "last_used_at"):
            keys.drop_column(name)
    for name, none_left in (("hash", "id"), ("hint", "''")):
        newest = (
            f"SELECT s.{name} FROM api_key_secrets s WHERE s.key_id = api_keys.id "  # noqa: S608 - two words
            "ORDER BY s.expires_at <> 0, s.expires_at DESC, s.created_at DESC LIMIT 1"
        )
        op.execute(f"UPDATE api_keys SET {name} = COALESCE(({newest}), {none_left})")  # noqa: S608 - names of columns
    with op.batch_alter_table("api_keys") as keys:
        keys.create_unique_constraint("api_keys_hash_key", ["hash"])
    op.drop_table("api_key_secrets")

"""The audit: rows that are only ever added."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

NOTHING_YET = "0" * 64
APPEND_ONLY = "the audit is append-only"


def upgrade() -> None:
    """Make the tables, and have the database keep what is in them."""
    op.create_table(
        "audit",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False
        ),
        sa.Column("at", sa.Double, nullable=False, index=True),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("result", sa.String(64), nullable=False),
        sa.Column("caller", sa.String(32)),
        sa.Column("key_id", sa.String(64)),
        sa.Column("key_hint", sa.String(32)),
        sa.Column("subject", sa.String(200)),
        sa.Column("token", sa.String(32)),
        sa.Column("client_ip", sa.String(64)),
        sa.Column("origin", sa.String(200)),
        sa.Column("route", sa.String(16)),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("file_id", sa.String(64)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("logid", sa.String(128)),
        sa.Column("status", sa.Integer),
        sa.Column("method", sa.String(16)),
        sa.Column("path", sa.String(200)),
        sa.Column("detail", sa.Text),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("seal", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": NOTHING_YET, "seal": ""}])
    op.create_table(
        "audit_spools",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("lines", sa.BigInteger, nullable=False),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    """Drop them, triggers included."""
    for name in ("audit_spools", "audit_head", "audit"):
        op.drop_table(name)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION broker_audit_is_append_only()")


_REFUSE = f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
# INSERT OR REPLACE deletes without asking the trigger for DELETE.
_IS_THERE = "EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)"
_SQLITE = (
    f"CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit WHEN {_IS_THERE} {_REFUSE}",
    f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit {_REFUSE}",
    f"CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit {_REFUSE}",
    f"CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head {_REFUSE}",
    f"CREATE TRIGGER audit_head_goes_on BEFORE UPDATE ON audit_head WHEN NEW.seq < OLD.seq {_REFUSE}",
)
_POSTGRESQL = (
    "CREATE FUNCTION broker_audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$",
    "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION broker_audit_is_append_only()",
    "CREATE TRIGGER audit_head_no_delete BEFORE DELETE OR TRUNCATE ON audit_head "
    "FOR EACH STATEMENT EXECUTE FUNCTION broker_audit_is_append_only()",
    "CREATE TRIGGER audit_head_goes_on BEFORE UPDATE ON audit_head FOR EACH ROW "
    "WHEN (NEW.seq < OLD.seq) EXECUTE FUNCTION broker_audit_is_append_only()",
)

"""Tables for what is fetched: statements of arXiv with their history, candidates, links, other indexes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make room; the two tables that nothing had written to yet give way to better ones."""
    op.drop_table("arxiv_version")
    op.drop_table("arxiv_record")
    op.create_table(
        "arxiv_statement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("arxiv", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("as_of", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("datestamp", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("record", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_arxiv_statement_arxiv", "arxiv_statement", ["arxiv", "as_of"])
    op.create_table(
        "arxiv_record",
        sa.Column("arxiv", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("published", sa.String(), nullable=False),
        sa.Column("updated", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("as_of", sa.String(), nullable=False),
        sa.Column("statement_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["statement_id"], ["arxiv_statement.id"]),
        sa.PrimaryKeyConstraint("arxiv"),
    )
    op.create_index("ix_arxiv_record_published", "arxiv_record", ["published"])
    op.create_table(
        "follow",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("succeeded", sa.String(), nullable=True),
        sa.Column("learned", sa.String(), nullable=True),
        sa.Column("newest", sa.String(), nullable=True),
        sa.Column("note", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("kind"),
    )
    op.create_table(
        "harvest",
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("set_name", sa.String(), nullable=False),
        sa.Column("since", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=True),
        sa.Column("token_at", sa.String(), nullable=True),
        sa.Column("pages", sa.Integer(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("complete_to", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("address", "set_name"),
    )
    op.create_table(
        "candidate",
        sa.Column("arxiv", sa.String(), nullable=False),
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("published", sa.String(), nullable=False),
        sa.Column("found", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("reasons", sa.String(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("words", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("decided", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("arxiv"),
        sa.UniqueConstraint("slug"),
    )
    op.create_index("ix_candidate_state", "candidate", ["state", "score"])
    op.create_table(
        "link_check",
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("leads_to", sa.String(), nullable=True),
        sa.Column("redirects", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("checked", sa.String(), nullable=False),
        sa.Column("alive_at", sa.String(), nullable=True),
        sa.Column("dead_since", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("url"),
    )
    op.create_index(op.f("ix_link_check_state"), "link_check", ["state"])
    op.create_table(
        "enrichment",
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("arxiv", sa.String(), nullable=False),
        sa.Column("fetched", sa.String(), nullable=False),
        sa.Column("facts", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("source", "arxiv"),
    )

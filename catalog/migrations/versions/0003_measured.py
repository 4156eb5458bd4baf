"""Tables for curves of strength, for drift under merging, and for comparisons with libraries."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "reversal",
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("backbone", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("word", sa.String(), nullable=False),
        sa.Column("zero_is_base", sa.Boolean(), nullable=True),
        sa.Column("growth", sa.Float(), nullable=True),
        sa.Column("cycles", sa.Integer(), nullable=False),
        sa.Column("kept_bfloat16", sa.Float(), nullable=True),
        sa.Column("once_bfloat16", sa.Float(), nullable=True),
        sa.Column("often_bfloat16", sa.Float(), nullable=True),
        sa.Column("kept_float32", sa.Float(), nullable=True),
        sa.Column("once_float32", sa.Float(), nullable=True),
        sa.Column("often_float32", sa.Float(), nullable=True),
        sa.Column("torch", sa.String(), nullable=False),
        sa.Column("python", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("commit", sa.String(), nullable=False),
        sa.Column("date", sa.String(), nullable=False),
        sa.Column("implementation", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("slug", "backbone", "source"),
    )
    op.create_table(
        "strength_point",
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("backbone", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("c", sa.Float(), nullable=False),
        sa.Column("along", sa.Float(), nullable=False),
        sa.Column("off", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("slug", "backbone", "source", "level", "c"),
    )
    op.create_table(
        "comparison",
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("library", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("settings", sa.String(), nullable=False),
        sa.Column("trained", sa.Integer(), nullable=True),
        sa.Column("attach_s", sa.Float(), nullable=True),
        sa.Column("forward_s", sa.Float(), nullable=True),
        sa.Column("step_s", sa.Float(), nullable=True),
        sa.Column("saved_bytes", sa.Integer(), nullable=True),
        sa.Column("peak_bytes", sa.Integer(), nullable=True),
        sa.Column("unmerge_s", sa.Float(), nullable=True),
        sa.Column("unmerge_error", sa.Float(), nullable=True),
        sa.Column("torch", sa.String(), nullable=False),
        sa.Column("python", sa.String(), nullable=False),
        sa.Column("device_name", sa.String(), nullable=False),
        sa.Column("commit", sa.String(), nullable=False),
        sa.Column("date", sa.String(), nullable=False),
        sa.Column("implementation", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("slug", "width", "threads", "library", "source"),
    )

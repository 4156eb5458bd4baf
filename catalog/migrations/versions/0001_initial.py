"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "arxiv_record",
        sa.Column("arxiv", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("authors", sa.String(), nullable=False),
        sa.Column("abstract", sa.String(), nullable=False),
        sa.Column("comment", sa.String(), nullable=True),
        sa.Column("journal_ref", sa.String(), nullable=True),
        sa.Column("doi", sa.String(), nullable=True),
        sa.Column("categories", sa.String(), nullable=False),
        sa.Column("published", sa.String(), nullable=False),
        sa.Column("updated", sa.String(), nullable=False),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.Column("fetched", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("arxiv"),
    )
    op.create_table(
        "arxiv_version",
        sa.Column("arxiv", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("seen", sa.String(), nullable=False),
        sa.Column("record", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("arxiv", "version"),
    )
    op.create_table(
        "author",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("folded", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_index(op.f("ix_author_folded"), "author", ["folded"], unique=False)
    op.create_table(
        "bench_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("backbone", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("device_name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=False),
        sa.Column("trained", sa.Integer(), nullable=True),
        sa.Column("share", sa.Float(), nullable=True),
        sa.Column("attach_s", sa.Float(), nullable=True),
        sa.Column("forward_ratio", sa.Float(), nullable=True),
        sa.Column("step_ratio", sa.Float(), nullable=True),
        sa.Column("forward_vs_lora", sa.Float(), nullable=True),
        sa.Column("step_vs_lora", sa.Float(), nullable=True),
        sa.Column("peak_bytes", sa.Integer(), nullable=True),
        sa.Column("peak_vs_lora", sa.Float(), nullable=True),
        sa.Column("saved_bytes", sa.Integer(), nullable=True),
        sa.Column("gap_closed", sa.Float(), nullable=True),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("torch", sa.String(), nullable=False),
        sa.Column("python", sa.String(), nullable=False),
        sa.Column("commit", sa.String(), nullable=False),
        sa.Column("date", sa.String(), nullable=False),
        sa.Column("implementation", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_bench_run_slug"), "bench_run", ["slug"], unique=False)
    op.create_table(
        "evidence",
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("backbone", sa.String(), nullable=False),
        sa.Column("claim", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("expected", sa.String(), nullable=False),
        sa.Column("measured", sa.String(), nullable=False),
        sa.Column("tolerance", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("torch", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("python", sa.String(), nullable=False),
        sa.Column("commit", sa.String(), nullable=False),
        sa.Column("date", sa.String(), nullable=False),
        sa.Column("implementation", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("slug", "backbone", "claim", "source"),
    )
    op.create_index(op.f("ix_evidence_status"), "evidence", ["status"], unique=False)
    op.create_table(
        "meta",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "paper",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("name", sa.String(collation="NOCASE"), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("arxiv", sa.String(), nullable=True),
        sa.Column("doi", sa.String(), nullable=True),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("code", sa.String(), nullable=True),
        sa.Column("venue", sa.String(), nullable=True),
        sa.Column("published", sa.String(), nullable=False),
        sa.Column("year", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("subcategory", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("slug"),
    )
    op.create_index(op.f("ix_paper_arxiv"), "paper", ["arxiv"], unique=False)
    op.create_index("ix_paper_category", "paper", ["category", "name", "slug"], unique=False)
    op.create_index(op.f("ix_paper_code"), "paper", ["code"], unique=False)
    op.create_index(op.f("ix_paper_doi"), "paper", ["doi"], unique=False)
    op.create_index(op.f("ix_paper_kind"), "paper", ["kind"], unique=False)
    op.create_index("ix_paper_name", "paper", ["name", "slug"], unique=False)
    op.create_index("ix_paper_published", "paper", ["published", "slug"], unique=False)
    op.create_index("ix_paper_subcategory", "paper", ["subcategory", "name", "slug"], unique=False)
    op.create_index(op.f("ix_paper_venue"), "paper", ["venue"], unique=False)
    op.create_index("ix_paper_year", "paper", ["year", "name", "slug"], unique=False)
    op.create_table(
        "source_list",
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("style", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("slug"),
    )
    op.create_table(
        "alias",
        sa.Column("folded", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("folded"),
    )
    op.create_index(op.f("ix_alias_paper_id"), "alias", ["paper_id"], unique=False)
    op.create_table(
        "builds_on",
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_id"],
            ["paper.id"],
        ),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("paper_id", "base_id"),
    )
    op.create_index("ix_builds_on_base", "builds_on", ["base_id"], unique=False)
    op.create_table(
        "claim",
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("claim", sa.String(), nullable=False),
        sa.Column("expected", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("paper_id", "claim"),
    )
    op.create_table(
        "deviation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("evidence", sa.String(), nullable=False),
        sa.Column("test", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_deviation_paper_id"), "deviation", ["paper_id"], unique=False)
    op.create_table(
        "erratum",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("list_slug", sa.String(), nullable=False),
        sa.Column("claim", sa.String(), nullable=False),
        sa.Column("fact", sa.String(), nullable=False),
        sa.Column("evidence", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["list_slug"],
            ["source_list.slug"],
        ),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_erratum_list_slug"), "erratum", ["list_slug"], unique=False)
    op.create_index(op.f("ix_erratum_paper_id"), "erratum", ["paper_id"], unique=False)
    op.create_table(
        "listing",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("list_slug", sa.String(), nullable=False),
        sa.Column("section", sa.String(), nullable=True),
        sa.Column("printed_as", sa.String(), nullable=False),
        sa.Column("link", sa.String(), nullable=True),
        sa.Column("commented", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["list_slug"],
            ["source_list.slug"],
        ),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_listing_list", "listing", ["list_slug", "paper_id"], unique=False)
    op.create_index(op.f("ix_listing_paper_id"), "listing", ["paper_id"], unique=False)
    op.create_table(
        "method",
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("implementation", sa.String(), nullable=True),
        sa.Column("no_implementation", sa.String(), nullable=True),
        sa.Column("detachable", sa.Boolean(), nullable=True),
        sa.Column("mergeable", sa.Boolean(), nullable=True),
        sa.Column("strength", sa.String(), nullable=True),
        sa.Column("strength_knob", sa.String(), nullable=True),
        sa.Column("identity_at_init", sa.Boolean(), nullable=True),
        sa.Column("parameters", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("paper_id"),
    )
    op.create_index(op.f("ix_method_detachable"), "method", ["detachable"], unique=False)
    op.create_index(op.f("ix_method_identity_at_init"), "method", ["identity_at_init"], unique=False)
    op.create_index(op.f("ix_method_implementation"), "method", ["implementation"], unique=False)
    op.create_index(op.f("ix_method_mergeable"), "method", ["mergeable"], unique=False)
    op.create_index(op.f("ix_method_strength"), "method", ["strength"], unique=False)
    op.create_table(
        "paper_author",
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("author_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["author_id"],
            ["author.id"],
        ),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("paper_id", "position"),
    )
    op.create_index("ix_paper_author_author", "paper_author", ["author_id"], unique=False)
    op.create_table(
        "paper_library",
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("library", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("paper_id", "library"),
    )
    op.create_index("ix_paper_library_library", "paper_library", ["library"], unique=False)
    op.create_table(
        "paper_modality",
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("paper_id", "modality"),
    )
    op.create_index("ix_paper_modality_modality", "paper_modality", ["modality"], unique=False)
    op.create_table(
        "entry",
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("json_text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("paper_id"),
    )
    op.create_table(
        "parameter_count",
        sa.Column("paper_id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("trained", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["paper_id"],
            ["paper.id"],
        ),
        sa.PrimaryKeyConstraint("paper_id", "model"),
    )
    op.create_index("ix_parameter_count_model", "parameter_count", ["model", "trained"], unique=False)
    op.execute(
        """CREATE VIRTUAL TABLE paper_text USING fts5(
            name, aliases, title, authors, summary, tokenize = "unicode61 remove_diacritics 2", prefix = '2 3'
        )"""
    )

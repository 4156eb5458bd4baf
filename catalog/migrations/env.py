"""Run by alembic: migrates over the connection that catalog.database opened, inside its transaction."""

from alembic import context
from sqlmodel import SQLModel

import catalog.models  # noqa: F401  fills the metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
    include_object=lambda _, name, kind, *rest: not (kind == "table" and str(name).startswith("paper_text")),
)
context.run_migrations()

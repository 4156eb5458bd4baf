"""The JSON Schema of an entry file, for editors that complete and check TOML while it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from catalog import taxonomy
from catalog.entry import Entry

SCHEMA_FILE = Path(__file__).parent / "schema" / "entry.schema.json"


def entry_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of an entry, with the definitions of the vocabulary."""
    schema = Entry.model_json_schema(by_alias=True)
    for name, part in schema["$defs"].items():
        words = getattr(taxonomy, name, None)
        if "enum" in part and words is not None:
            part["description"] = " ".join(f"{word}: {text}" for word, text in words.definitions().items())
    schema["title"] = "peft-catalog entry"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The schema as written to its file."""
    return json.dumps(entry_schema(), indent=2, ensure_ascii=False) + "\n"

#!/usr/bin/env bash
# Installs the project into an empty environment, as a user would, and asks it from another folder: entries travel in the
# wheel, the database is built at first use, and nothing of the checkout or of torch is needed.
#
#     scripts/check_wheel.sh
set -euo pipefail
project="$(cd "$(dirname "$0")/.." && pwd)"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/venv"
# From a copy: building leaves folders behind that a checkout should not have.
git -C "$project" ls-files -z --cached --others --exclude-standard | tar -C "$project" --null -T - -cf - | tar -C "$folder" --one-top-level=source -xf -
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$project/constraints.txt" "$folder/source"
rm -rf "$folder/source"

cd "$folder"
export PEFT_CATALOG_DB="$folder/catalog.sqlite"
found="$("$folder/venv/bin/peft-catalog" query --category reparameterized --strength linear --mergeable --format slugs)"
grep -qx lora <<<"$found" || { echo "check_wheel: the query did not find lora" >&2; exit 1; }
"$folder/venv/bin/peft-catalog" show lora >/dev/null
if message="$("$folder/venv/bin/peft-catalog" verify lora 2>&1)"; then
    echo "check_wheel: verify ran without torch" >&2
    exit 1
fi
grep -q "needs torch" <<<"$message" || { echo "check_wheel: $message" >&2; exit 1; }
echo "check_wheel: installed, queried and shown without torch ($(wc -l <<<"$found") answers)"

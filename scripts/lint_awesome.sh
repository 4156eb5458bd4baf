#!/usr/bin/env bash
# Lints an awesome list:  scripts/lint_awesome.sh AWESOME.md
#
# Runs awesome-lint, the linter of the awesome lists, with all of its rules but one: `awesome-github` asks GitHub about
# the repository (description, topics, license), which says nothing about the list. Every complaint counts, warnings of
# its spelling rule included.
#
# The linter is installed with npm into build/awesome-lint, once for each version; its own dependencies are those of
# the day below, so that the same list gets the same verdict tomorrow. No installation scripts are run.
#
# Exit codes: 0 clean, 1 complaints (one line each: file:line:column message [rule]), 2 the linter cannot be run.
set -euo pipefail

version=2.3.0
as_of=2026-11-01

fail() {
    printf 'lint_awesome.sh: %s\n' "$@" >&2
    exit 2
}

[ $# -eq 1 ] || fail 'name one file' 'usage: scripts/lint_awesome.sh AWESOME.md'
[ -f "$1" ] || fail "there is no file $1"
for tool in node npm; do
    command -v "$tool" >/dev/null || fail "$tool is missing; install Node.js 20 or newer, which brings node and npm"
done
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || fail "Node.js $(node -v) is too old; 20 is needed"

list="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
cd "$(dirname "$0")/.."
folder="build/awesome-lint/$version"

if [ ! -d "$folder" ]; then
    mkdir -p build/awesome-lint
    fresh="$(mktemp -d build/awesome-lint/install.XXXXXX)"
    trap 'rm -rf "$fresh"' EXIT
    npm install --prefix "$fresh" --before "$as_of" --ignore-scripts --no-audit --no-fund --loglevel error \
        "awesome-lint@$version" >&2 || fail "npm could not install awesome-lint $version"
    [ -d "$folder" ] || mv "$fresh" "$folder" # the folder takes its name when it is complete
fi

MODULES="$PWD/$folder/node_modules" LIST="$list" SHOWN="$1" node --input-type=module <<'PROGRAM'
import process, {env, exit} from 'node:process';
import {pathToFileURL} from 'node:url';

process.on('uncaughtException', error => {
	console.error(`lint_awesome.sh: ${error.message} (rm -r build/awesome-lint installs the linter anew)`);
	exit(2);
});
const load = file => import(pathToFileURL(`${env.MODULES}/${file}`));
const {default: rules} = await load('awesome-lint/config.js');
const {remark} = await load('remark/index.js');
const {readSync} = await load('to-vfile/index.js');

const ruleOf = plugin => (Array.isArray(plugin) ? plugin[0] : plugin).name;
const config = rules.filter(plugin => ruleOf(plugin) !== 'remark-lint:awesome-github');
if (config.length !== rules.length - 1) {
	console.error('lint_awesome.sh: awesome-lint has no rule awesome-github any more');
	exit(2);
}

const {messages} = await remark().use(config).process(readSync(env.LIST));
for (const {line, column, reason, ruleId} of messages) {
	console.log(`${env.SHOWN}:${line ?? 1}:${column ?? 1} ${reason} [${ruleId}]`);
}

console.log(`${env.SHOWN}: ${messages.length || 'no'} complaint${messages.length === 1 ? '' : 's'}`);
exit(messages.length ? 1 : 0);
PROGRAM
